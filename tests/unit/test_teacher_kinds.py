"""A kind of teacher signal is one class and its line in the registry, and nothing else names it."""

import ast
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.process import one_thread
from helpers.teacher_columns import targets, teachers_of, words
from helpers.tnr import ROOT
from helpers.world import TinyWorld, make_world

from shards.cell_tensors import OFFSETS, VALUES
from shards.column_check import verify_column_folders
from shards.columns import ColumnReader, ColumnWriter
from shards.ragged import offsets_from_lengths, ranges
from shards.texts import TextView
from trainer.cli.main import main
from trainer.errors import ColumnError
from trainer.export.folder import load_export
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds import KINDS, Kind, stages
from trainer.teacher_server.kinds.base import Count, Said, Signal, article_identity
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.request import FillRequest, Source
from trainer.teacher_server.storage import Ragged

STATES = "teacher-states"
REGISTERED = Kind("3", "hidden states of titles", "test_teacher_kinds:TokenStates")


class TokenStates(Signal):
    """``states`` [L, D] of every token of a title, in float32."""

    name = STATES

    def identity(self) -> dict[str, Any]:
        """Return the teacher, its texts and the articles."""
        return article_identity(self.teacher, self.source, self.dtype)

    @property
    def dtype(self) -> str:
        """Whatever is asked for."""
        return "float32"

    def texts(self) -> Sequence[TextView]:
        """Return what the teacher reads of an article."""
        return (self.teacher.news_texts(self.teacher.tokens(self.source.articles)),)

    def row_bytes(self) -> np.ndarray:
        """Return the bytes of a state a token, and of an offset a row and a cell."""
        width = self.teacher.load_model().config.language_model.hidden_size
        rows = np.diff(self.shard_set.shard_starts)
        return np.array(self.work) * width * 4 + (rows + 1) * 8

    def encode(self, model: TeacherModel, rows: np.ndarray, count: Count = None) -> Said:
        """Compute the last layer's states."""
        (texts,) = self.texts()
        lengths = texts.lengths(rows)
        offsets = offsets_from_lengths(lengths)
        width = model.model.config.language_model.hidden_size
        values = np.empty((int(offsets[-1]), width), np.float32)
        for group in texts.groups(rows, model.batch_tokens):
            ids, mask = torch.from_numpy(group.ids), torch.from_numpy(group.mask).bool()
            with torch.no_grad():
                states = model.model.backbone(ids, mask)[mask]
            values[ranges(offsets[group.places], lengths[group.places])] = states.numpy()
            if count is not None:
                count(len(states))
        return {"states": Ragged(values, offsets)}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyWorld:
    monkeypatch.setitem(KINDS, STATES, REGISTERED)
    return make_world(tmp_path)


def command(world: TinyWorld, action: str, teachers: list[str]) -> list[str]:
    return words(world, action, 3, teachers)


def columns(world: TinyWorld) -> list[Path]:
    return sorted(world.articles.columns_dir.glob(f"{STATES}-*"))


def test_a_kind_of_its_own_is_planned_filled_resumed_shown_verified_read_and_pruned(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = teachers_of(world, 1, 2)
    assert main([*command(world, "plan", teachers), "--trial-s", "0"]) == 0
    assert "tokens/s" in capsys.readouterr().out and not columns(world)
    assert main(command(world, "status", teachers)) == 1
    assert f"{STATES}  " in capsys.readouterr().out

    # Killed outright while it encodes the third of six cells.
    program = (
        "import os, signal, test_teacher_kinds as test\n"
        "from trainer.cli.main import main\n"
        "test.KINDS[test.STATES] = test.REGISTERED\n"
        "encode, calls = test.TokenStates.encode, []\n"
        "def dying(*given):\n"
        "    calls.append(given)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return encode(*given)\n"
        "test.TokenStates.encode = dying\n"
        f"main({command(world, 'cache', teachers)!r})\n"
    )
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/unit")))
    environment = one_thread() | {"PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert main(command(world, "status", teachers)) == 1
    assert "2 of 3 cells" in capsys.readouterr().out
    assert main(command(world, "cache", teachers)) == 0
    assert "done: 4 cells filled" in capsys.readouterr().out
    assert main(command(world, "status", teachers)) == 0
    assert main(["shards", "verify", str(world.articles.path)]) == 0
    capsys.readouterr()
    assert main(command(world, "verify", teachers)) == 0
    told = capsys.readouterr().out
    assert told.count(f"{STATES}: bytes intact, largest error of states ") == 2

    source = Source(world.articles)
    rows = np.array([31, 2, 17])
    for teacher in map(load_export, teachers):
        column = TokenStates(teacher, source)
        reader = column.open()
        assert column.sizes.sum() >= sum(path.stat().st_size for path in reader.folder.iterdir())
        stored = column.read(reader, rows)["states"]
        live = column.encode(TeacherModel(teacher, FillRequest(world.articles)), rows)["states"]
        assert isinstance(stored, Ragged) and stored.values.shape == live.values.shape
        np.testing.assert_array_equal(stored.offsets, live.offsets)
        np.testing.assert_allclose(stored.values, live.values, atol=1e-5)
        (texts,) = column.texts()
        np.testing.assert_array_equal(np.diff(stored.offsets), texts.lengths(rows))

    keep = ["teachers", "prune", str(world.articles.path), "--keep-models", teachers[0]]
    assert main([*keep, "--yes"]) == 0
    assert columns(world) == [TokenStates(load_export(teachers[0]), source).folder]


@pytest.mark.parametrize("change", ["values", "lengths"])
def test_values_of_a_kind_of_its_own_that_are_not_the_teachers_are_found(
    world: TinyWorld, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = teachers_of(world, 1, 1)
    assert main(command(world, "cache", teachers)) == 0
    target = targets(load_export(teachers[0]), FillRequest(world.articles, stage="3"))[0]
    cell = {name: np.array(values) for name, values in ColumnReader.open(*target).cell(1).items()}
    if change == "values":
        cell["states" + VALUES] = cell["states" + VALUES][::-1].copy()
    else:
        cell["states" + OFFSETS][1:-1] += 1
    ColumnWriter(*target).write(1, cell, replace=True)  # good checksums, wrong rows
    assert verify_column_folders(world.articles)[0] == []
    capsys.readouterr()
    assert main(command(world, "verify", teachers)) == 1
    assert "a recomputed value of states differs by" in capsys.readouterr().err


def test_a_kind_of_its_own_is_followed_refused_and_mended_by_the_command_that_is_named(
    world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = teachers_of(world, 1, 1)
    column = TokenStates(load_export(teacher[0]), Source(world.articles))
    with pytest.raises(ColumnError, match=f"no usable {STATES} column of teacher ") as told:
        column.open()
    follower = Follower(0.1, 9, lambda line: None)
    with pytest.raises(
        ColumnError, match=f"{STATES} of teacher .* has not been started yet"
    ) as waited:
        column.open(follower)
    repair = str(told.value).rpartition("Repair: tnr ")[2]
    assert f"tnr {repair}; then start this run again" in str(waited.value)
    assert main(shlex.split(repair)) == 0
    (folder,) = columns(world)
    for path in folder.glob("news-000001*"):
        path.unlink()
    with pytest.raises(ColumnError, match="not complete: 1 of 3") as told:
        ColumnReader.open(*column.target)
    location = shlex.quote(world.articles.location)
    asked = f"tnr teachers cache --stage 3 --articles {location} --dtype float32 "
    assert asked in str(told.value)
    with pytest.raises(SystemExit):
        main(["teachers", "cache", "--help"])
    assert "3: hidden states of titles" in " ".join(capsys.readouterr().out.split())


def test_kinds_are_named_in_their_own_room_alone() -> None:
    """Whoever else names one would have to be changed for the next one."""
    home = ROOT / "trainer/teacher_server/kinds"
    found = {}
    for folder in ("shards", "trainer", "launchers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if home not in path.parents and (names := named_in(path.read_text(encoding="utf-8"))):
                found[str(path.relative_to(ROOT))] = names
    assert found == {}
    # Planted, one is found.
    assert named_in('def f():\n    """teacher-text"""\n    return x == "teacher-text"') == [
        "teacher-text"
    ]
    assert named_in('f"{a}/teacher-news-*"') == ["/teacher-news-*"]
    assert stages() == {"1": ["teacher-text"], "2": ["teacher-news", "teacher-clicks"]}


def named_in(code: str) -> list[str]:
    """The texts of a program that name a kind, but for docstrings."""
    tree = ast.parse(code)
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node not in texts
        and any(name in node.value for name in KINDS)
    ]
