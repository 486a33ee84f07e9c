"""The worked example of trainer/README.md, as it stands there: a task in one file and a line."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers.launch import metrics
from helpers.world import TINY_MODEL, TinyWorld, make_world, read_by

from trainer.cli.main import main
from trainer.export.folder import load_export
from trainer.recipes import load
from trainer.tasks import registry

README = Path(__file__).parents[2] / "trainer" / "README.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the parts of the example where it says, for the time of a test; the recipe's path."""
    (yaml_block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "simcse_example.py").write_text(code[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    name, where = re.fullmatch(r'"(\w+)": "trainer\.tasks\.simcse:(\w+)",\n', code[1]).groups()
    monkeypatch.setitem(registry.TASKS, name, f"simcse_example:{where}")
    registry.task_named.cache_clear()
    registry.all_settings.cache_clear()
    recipe = tmp_path / "simcse.yaml"
    recipe.write_text(yaml_block)
    yield recipe
    registry.task_named.cache_clear()
    registry.all_settings.cache_clear()
    sys.modules.pop("simcse_example", None)


def test_the_example_trains_shows_its_settings_and_is_exported(
    example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world: TinyWorld = make_world(tmp_path / "world", num_articles=60)
    assert main(["train", str(example), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--temperature FLOAT" in shown and "--data.num_negatives" not in shown
    given = read_by("simcse", TINY_MODEL) | {
        "data.articles": world.articles.path,
        "run.dir": tmp_path / "run",
        "run.max_steps": 40,
        "run.epochs": 100,
        "optimizer.lr": 0.01,
        "model.backbone.hidden_dropout": 0.1,
    }
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", str(example), *words, "--dry-run"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["temperature"] == 0.05 and "num_negatives" not in resolved["data"]
    assert main(["plan", str(example), *words]) == 0
    assert main(["train", str(example), *words]) == 0
    losses = list(metrics(tmp_path / "run").values())
    assert losses[-1] < losses[0]
    export = load_export(tmp_path / "run" / "export")
    assert export.info["task"] == "simcse" and export.news_parts == (("title", 10),)
    assert main(["train", str(example), *words, "--data.clicks", "c"]) == 2
    assert "task simcse does not read data.clicks" in capsys.readouterr().err


def test_the_line_of_the_registry_is_that_of_the_example(example: Path) -> None:
    task = load.task_of_recipe(str(example))
    assert task.name == "simcse" and type(task).__module__ == "simcse_example"
