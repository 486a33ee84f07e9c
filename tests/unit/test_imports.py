"""The arrows of import between the packages, and that commands start quickly."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "accelerate", "transformers", "webdataset", "tensorboard")


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of modules that a file imports, anywhere or only when it is itself
    imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _executed_at_import(tree) if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _executed_at_import(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _executed_at_import(node)


def files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, folders
    return found


def offenders(paths: list[Path], forbidden: tuple[str, ...], **kwargs: bool) -> dict[str, set[str]]:
    bad = {}
    for path in paths:
        hits = {
            name
            for name in imports_of(path, **kwargs)
            if any(name == root or name.startswith(root + ".") for root in forbidden)
        }
        if hits:
            bad[str(path.relative_to(ROOT))] = hits
    return bad


def test_shards_import_neither_trainer_nor_launchers() -> None:
    assert offenders(files("shards"), ("trainer", "launchers")) == {}


def test_shards_import_nothing_heavy_when_imported() -> None:
    assert offenders(files("shards"), HEAVY, top_level_only=True) == {}


def test_models_and_losses_are_free_of_engine_and_data() -> None:
    forbidden = ("deepspeed", "accelerate", "shards")
    paths = files("trainer/models", "trainer/losses")
    allowed = ("shards.errors", "shards.files", "shards.pretrained")  # know no shard sets
    bad = {
        path: {hit for hit in hits if hit != "shards" and not hit.startswith(allowed)}
        for path, hits in offenders(paths, forbidden).items()
    }
    assert {path: hits for path, hits in bad.items() if hits} == {}


def test_hugging_face_objects_are_loaded_in_one_file() -> None:
    call = re.compile(r"\b(AutoConfig|AutoModel\w*|AutoTokenizer)\.from_(pretrained|config)\(")
    found = [
        str(path.relative_to(ROOT))
        for path in files("shards", "trainer", "launchers")
        if call.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["shards/pretrained.py"]


def test_deepspeed_is_imported_in_engine_and_checkpoint_alone() -> None:
    paths = [
        path
        for path in files("trainer", "launchers", "shards")
        if path.relative_to(ROOT).parts[:2]
        not in {("trainer", "engine"), ("trainer", "checkpoint")}
    ]
    assert offenders(paths, ("deepspeed",)) == {}


def test_the_engine_knows_no_evaluator() -> None:
    paths = files("trainer/engine", "trainer/monitor", "trainer/checkpoint")
    assert offenders(paths, ("trainer.evaluate",)) == {}


def test_launchers_import_no_torch() -> None:
    assert offenders(files("launchers"), HEAVY) == {}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["shards", "build", "--help"], ["export", "--help"]],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from trainer.cli.main import main\n"
        f"try:\n    main({words!r})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
