"""`tnr train --dry-run`: the resolved run, its arithmetic and its order, without training."""

import pytest
from helpers.world import TINY_MODEL, TinyWorld, make_world

from trainer.cli.main import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("dry"), num_articles=60)


def dry_run(world: TinyWorld, capsys, task: str, **more: object) -> str:
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": world.folder / "run"}
    given |= {key.replace("__", "."): value for key, value in more.items()}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", task, *words, "--run.copies.rule", "none", "--dry-run"]) == 0
    assert not (world.folder / "run").exists()
    return capsys.readouterr().out


def test_dry_run_says_how_the_order_mixes_and_what_a_window_takes(world, capsys) -> None:
    out = dry_run(world, capsys, "post_train", data__window_shards=2)
    assert "# 60 units x 1 epochs -> 8 optimizer steps" in out
    assert "# order: windows of 2 of 4 shards (30 of 60 units, 0.0 MiB); of a uniform" in out
    assert "samples travel" in out and "a global batch of 8 reads from" in out


def test_dry_run_of_a_click_task_counts_clicks(world, capsys) -> None:
    out = dry_run(world, capsys, "finetune", data__clicks=world.impressions.path)
    assert "windows of 4 of 4 shards" in out
