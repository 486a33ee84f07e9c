"""Names of tasks, user encoders and kinds of shard sets stand in their own rooms: a new one is one
file and a line."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.set_kinds import KINDS
from trainer.models.user_encoders import USER_ENCODERS
from trainer.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]
HOMES = ("trainer/tasks/", "trainer/recipes/presets.py", "launchers/steps.py")
DEFAULTS = ("trainer/config/clicks.py", "trainer/models/configuration.py")
"""Name the user encoder that is taken where none is chosen."""
KIND_HOMES = ("shards/set_kinds/",)
OF_ONE_KIND = (
    "shards/build.py",  # a build function a kind
    "shards/click_cells.py",  # the column of clicks lies over impressions
    "shards/foreign.py",  # tars made elsewhere hold articles
    "shards/tokenize.py",  # articles have texts
    "shards/tokenizer.py",
    "shards/world/",  # a world is articles and a log
    "trainer/cli/recommend.py",  # each option names a set of one kind
    "trainer/cli/teachers.py",
    "trainer/evaluate/pairs.py",  # a log and the articles that it names
    "trainer/tasks/",  # a task opens the sets that it reads
    "trainer/teacher_server/",  # a signal lies over a kind; tnr teachers has an option for each
)


def sources(
    homes: tuple[str, ...], folders: tuple[str, ...] = ("trainer", "shards", "launchers")
) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(homes):
                yield name, parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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
    assert {name: lines for name, tree in sources(HOMES) if (lines := task_names(tree))} == {}


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
    found = {name: lines for name, tree in sources(()) if (lines := user_encoders(tree))}
    assert {name: lines for name, lines in found.items() if not name.startswith(homes)} == {}
    assert [len(found[name]) for name in DEFAULTS] == [1, 1]
    assert user_encoders(ast.parse('if model.user_encoder == "nrms": pass'))


def kind_names(tree: ast.AST) -> list[int]:
    """Lines with a string that is the name of a kind of shard sets, or that import its class."""
    lines = []
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Constant) and node.value in KINDS:
            lines.append(node.lineno)
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        homes = tuple(where.partition(":")[0] for where in KINDS.values())
        lines += [node.lineno for module in modules if module.startswith(homes)]
    return lines


def asked_kinds(tree: ast.AST) -> list[int]:
    """Like :func:`kind_names`, where the names are also words: of counts, units and settings."""
    asked: list[ast.AST] = []
    for node in ast.walk(tree):
        is_keyword = isinstance(node, ast.keyword) and node.arg == "kind"
        places = (ast.Compare, ast.MatchValue, ast.Import, ast.ImportFrom)
        if is_keyword or isinstance(node, places):
            asked.append(node)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            if getattr(called, "id", called) in ("check_kind", "kind_named", "over"):
                asked += node.args
    return [line for node in asked for line in kind_names(node)]


def test_no_other_module_of_shards_names_a_kind_of_sets() -> None:
    homes = KIND_HOMES + OF_ONE_KIND
    found = {name: kind_names(tree) for name, tree in sources(homes, ("shards",))}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_other_module_asks_for_a_kind_of_sets() -> None:
    found = {name: asked_kinds(tree) for name, tree in sources(KIND_HOMES + OF_ONE_KIND)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("listed", OF_ONE_KIND)
def test_a_module_that_may_name_a_kind_does(listed: str) -> None:
    rest = KIND_HOMES + tuple(other for other in OF_ONE_KIND if other != listed)
    assert any(kind_names(tree) for name, tree in sources(rest) if name.startswith(listed))


@pytest.mark.parametrize(
    ("planted", "is_word"),
    [
        ('if shard_set.kind == "articles": pass', False),
        ('if kind in ("articles", "other"): pass', False),
        ('ShardSet.open(path, kind="impressions")', False),
        ('check_kind(shard_set, "impressions", "data.clicks")', False),
        ('source.over("impressions")', False),
        ('match kind:\n    case "articles": pass', False),
        ("from shards.set_kinds.articles import Articles", False),
        ("import shards.set_kinds.impressions as kind", False),
        ('prefixes = {"articles": "news"}', True),
        ('KIND = "impressions"', True),
    ],
)
def test_a_planted_kind_is_found(planted: str, is_word: bool) -> None:
    assert kind_names(ast.parse(planted))
    assert bool(asked_kinds(ast.parse(planted))) != is_word
