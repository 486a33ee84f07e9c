"""Names of tasks and of user encoders stand in their own rooms alone, so that a new one is one file
and a line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.models.user_encoders import USER_ENCODERS
from trainer.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]
HOMES = ("trainer/tasks/", "trainer/recipes/presets.py", "launchers/steps.py")
DEFAULTS = ("trainer/config/clicks.py", "trainer/models/configuration.py")
"""Name the user encoder that is taken where none is chosen."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("trainer", "shards", "launchers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(HOMES):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def task_names(tree: ast.AST) -> list[int]:
    """Lines with a string that is the name of a task, or that ask what a ``.task`` is."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in TASKS:
            lines.append(node.lineno)
        asked: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = [node.func.value] if node.func.attr in ("startswith", "endswith") else []
        elif isinstance(node, ast.Match):
            asked = [node.subject]
        lines += [a.lineno for a in asked if isinstance(a, ast.Attribute) and a.attr == "task"]
    return lines


def test_no_other_module_names_a_task() -> None:
    assert {name: lines for name, tree in sources() if (lines := task_names(tree))} == {}


@pytest.mark.parametrize(
    "planted",
    [
        'if config.task == "finetune": pass',
        "if config.task != other.task: pass",
        'ways = {"post_train_distill": 1}',
        'if config.task.startswith("fine"): pass',
        'if config.task.endswith("distill"): pass',
        'f("post_train")',
        "match config.task:\n    case x: pass",
    ],
)
def test_a_planted_name_is_found(planted: str) -> None:
    assert task_names(ast.parse(planted))


def user_encoders(tree: ast.AST) -> list[int]:
    """Lines with a string that is the name of a user encoder."""
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node.lineno for node in constants if node.value in USER_ENCODERS]


def test_no_other_module_names_a_user_encoder() -> None:
    homes = ("trainer/models/user_encoders/", *DEFAULTS)
    found = {name: lines for name, tree in sources() if (lines := user_encoders(tree))}
    assert {name: lines for name, lines in found.items() if not name.startswith(homes)} == {}
    assert [len(found[name]) for name in DEFAULTS] == [1, 1]
    assert user_encoders(ast.parse('if model.user_encoder == "nrms": pass'))
