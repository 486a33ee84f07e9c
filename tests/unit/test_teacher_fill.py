"""Filling in parts, beside other processes and with interruptions."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.batches import flat
from helpers.process import one_thread
from helpers.teacher_columns import (
    cells_of,
    columns_of,
    forget,
    request,
    silent,
    targets,
    teachers_of,
    words,
    world_of_returning_users,
)
from helpers.tnr import ROOT, tnr
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from shards.column_extras import EMPTY, read_vector, write_vector
from shards.columns import ColumnReader
from shards.histories import distinct, holders
from trainer.cli.main import main
from trainer.errors import ColumnError, DamageError, UsageError
from trainer.export.folder import load_export
from trainer.tasks.live import LiveClickSignals
from trainer.teacher_server.cells import cells_of_part, parse_part
from trainer.teacher_server.fill import fill
from trainer.teacher_server.kinds.clicks import ExactNews, StoredClickSignals
from trainer.teacher_server.kinds.text import StoredTextSignals
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.signals import ClickRows
from trainer.teacher_server.status import status_lines
from trainer.teacher_server.verify import verify_lines


@pytest.fixture
def world(tmp_path: Path) -> TinyWorld:
    """Two users' histories come again and again, all over the log."""
    return world_of_returning_users(tmp_path)


@pytest.mark.parametrize("stage", [1, 2])
def test_parts_are_disjoint_complete_and_of_about_equal_work(world: TinyWorld, stage: int) -> None:
    cells = cells_of(teachers_of(world, stage, 3), request(world, stage))
    total, largest = sum(cell.work for cell in cells), max(cell.work for cell in cells)
    for parts in (1, 2, 3, 5, len(cells), 40):
        found = [cells_of_part(cells, part, parts) for part in range(parts)]
        assert [cell for of_part in found for cell in of_part] == cells
        for of_part in found:
            assert abs(sum(cell.work for cell in of_part) - total / parts) <= largest


def test_a_part_is_counted_from_zero() -> None:
    assert parse_part("0/8") == (0, 8) and parse_part("7/8") == (7, 8)
    with pytest.raises(UsageError, match=r"counted from 0.* 7/8 .*--array=0-7"):
        parse_part("8/8")
    for text in ("", "3", "a/b", "-1/2", "1/0"):
        with pytest.raises(UsageError):
            parse_part(text)


@pytest.mark.parametrize("stage", [1, 2])
def test_parts_in_any_order_store_the_same_bytes_and_encode_no_article_twice(
    world: TinyWorld, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = teachers_of(world, stage)
    fill(teachers, request(world, stage), silent)
    at_once = columns_of(world)
    forget(world)
    encoded: list[np.ndarray] = []
    titles = TeacherModel.titles

    def counted(self, rows, count=None):
        encoded.append(rows)
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", counted)
    asked = [request(world, stage, part=(part, 3)) for part in (2, 0, 1)]
    cells = [fill(teachers, one, silent) for one in asked]
    assert all(cells) and sum(cells) == len(cells_of(teachers, asked[0]))
    assert columns_of(world) == at_once
    assert sum(map(len, encoded)) == len(teachers) * world.articles.num_rows
    assert not list(world.articles.columns_dir.glob(f"*{ExactNews.name}*"))


def test_another_process_may_finish_the_teacher_while_this_one_encodes(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, asked = teachers_of(world, 2, 1), request(world, 2)
    fill(teacher, asked, silent)
    at_once = columns_of(world)
    forget(world)
    titles = TeacherModel.titles

    def late(self, rows, count=None):
        monkeypatch.setattr(TeacherModel, "titles", titles)
        assert fill(teacher, asked, silent) == len(cells_of(teacher, asked))
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", late)
    assert fill(teacher, asked, silent) == 1
    assert columns_of(world) == at_once


def test_a_working_column_that_cannot_be_written_is_an_error(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = TeacherModel.titles

    def remove_first(self, rows, count=None):
        for folder in world.articles.columns_dir.glob(f"{ExactNews.name}-*"):
            shutil.rmtree(folder)
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", remove_first)
    with pytest.raises(ColumnError, match=rf"cannot write .*{ExactNews.name}"):
        fill(teachers_of(world, 2, 1), request(world, 2), silent)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_command_that_a_student_names_can_be_run_as_it_is(tmp_path: Path, stage: int) -> None:
    world = make_world(tmp_path / "a b", num_impressions=4)
    teacher = teachers_of(world, stage, 1)

    def student() -> None:
        if stage == 1:
            StoredTextSignals(world.articles, teacher, "float16", "fp32")
        else:
            StoredClickSignals(world.articles, world.impressions, teacher, "float16", "fp32")

    with pytest.raises(ColumnError) as told:
        student()
    assert main(shlex.split(str(told.value).rpartition("Repair: tnr ")[2])) == 0
    student()


@pytest.mark.parametrize("damage", ["lost", "without a checksum", "flipped"])
def test_a_damaged_vector_of_the_empty_title_is_found_and_mended_alone(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path / "a b", num_impressions=4)
    teacher = teachers_of(world, 2, 1)
    asked = request(world, 2)

    def student() -> StoredClickSignals:
        return StoredClickSignals(world.articles, world.impressions, teacher, "float16", "fp32")

    fill(teacher, asked, silent)
    before = columns_of(world)
    (path,) = world.articles.columns_dir.glob(f"*/{EMPTY}")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if damage == "lost":
        path.unlink()
    else:  # without a checksum is what was written before there was one
        path.write_bytes(content if damage == "flipped" else content[:-4])

    lines, is_complete = status_lines(teacher, asked)
    assert not is_complete and "damaged: " in lines[1] and EMPTY in lines[1]
    with pytest.raises(DamageError, match=EMPTY):
        list(verify_lines(teacher, asked, rows=4))
    with pytest.raises(ColumnError, match=rf"no usable teacher-news .*{EMPTY}.*Repair: ") as told:
        student()
    monkeypatch.setattr(TeacherModel, "titles", None)  # nothing else is encoded
    command = str(told.value).rpartition("Repair: tnr ")[2]
    assert main(shlex.split(command)) == 0
    assert columns_of(world) == before
    student()
    monkeypatch.undo()
    write_vector(path.parent, read_vector(path.parent) + np.float16(1))
    with pytest.raises(ColumnError, match=f"empty title differs .*; delete {EMPTY} and fill it"):
        list(verify_lines(teacher, asked, rows=4))


def test_impressions_with_one_history_share_one_stored_user_vector(world: TinyWorld) -> None:
    teacher = teachers_of(world, 2, 1)
    asked = request(world, 2, dtype="float32")
    fill(teacher, asked, silent)
    clicks = ClickColumn.open(world.impressions)
    rows = np.arange(clicks.num_impressions)
    history, _ = clicks.history(rows, 5)
    expected = [next(i for i in rows if (history[i] == history[row]).all()) for row in rows]
    who = holders(clicks, 5)
    np.testing.assert_array_equal(who, expected)
    places, which = distinct(history)
    assert len(places) == len(set(expected)) < 30
    np.testing.assert_array_equal(history[places][which], history)
    reader = ColumnReader.open(*targets(load_export(teacher[0]), asked)[1])
    cells = [reader.cell(shard) for shard in range(world.impressions.num_shards)]
    assert sum(len(cell["user.values"]) for cell in cells) == len(set(expected))
    positions = np.zeros((len(rows), 2), dtype=np.int64)
    positions[:, 1] = 1
    news = np.arange(6)
    stored = StoredClickSignals(world.articles, world.impressions, teacher, "float32", "fp32")
    live = LiveClickSignals(world.articles, world.impressions, teacher)
    asked_rows = ClickRows(news, rows, positions)
    found, oracle = (flat(source.say(source.read(asked_rows))) for source in (stored, live))
    assert found.keys() == oracle.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, oracle[name], rtol=1e-5, atol=1e-6)
    # Not all the same: a reader that always took the first vector would not pass.
    assert len(np.unique(found["users.0"], axis=0)) == len(places)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("int8", 2e-2)])
def test_stage_2_in_fewer_bytes_says_nearly_the_same(
    world: TinyWorld, dtype: str, tolerance: float
) -> None:
    teacher = teachers_of(world, 2, 1)
    fill(teacher, request(world, 2, dtype=dtype), silent)
    rows = ClickRows(np.array([3, -1, 5, 3]), np.arange(4), np.zeros((4, 2), dtype=np.int64))
    stored = StoredClickSignals(world.articles, world.impressions, teacher, dtype, "fp32")
    live = LiveClickSignals(world.articles, world.impressions, teacher)
    found, oracle = (flat(source.say(source.read(rows))) for source in (stored, live))
    assert found.keys() == oracle.keys()
    for name, values in found.items():
        scale = np.abs(oracle[name]).max()
        np.testing.assert_allclose(values, oracle[name], rtol=0, atol=tolerance * scale)
        assert not np.array_equal(values, oracle[name]), f"{name} is not stored in {dtype}"


@pytest.mark.parametrize("stage", [1, 2])
def test_a_signal_ends_with_75_between_batches_and_the_same_command_goes_on(
    world: TinyWorld,
    stage: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teachers = teachers_of(world, stage)
    titles, calls = TeacherModel.titles, []

    def interrupted(self, rows, count=None):
        calls.append(len(rows))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return titles(self, rows, count)

    monkeypatch.setattr(TeacherModel, "titles", interrupted)
    assert main(words(world, "cache", stage, teachers)) == 75
    total = len(cells_of(teachers, request(world, stage)))
    told = capsys.readouterr().err
    assert f"stopped by SIGUSR2: {total - 2} of {total} cells are left" in told
    assert len(calls) == 2
    assert main(words(world, "cache", stage, teachers)) == 0
    assert f"done: {total - 2} cells filled" in capsys.readouterr().out
    assert len(list(verify_lines(teachers, request(world, stage), 8))) == 2 * stage


def test_processes_beside_each_other_leave_one_valid_file_a_cell(world: TinyWorld) -> None:
    """Two commands fill the same cells at once, and a launcher's two ranks those of stage I."""
    second, first = teachers_of(world, 2, 2), teachers_of(world, 1, 2)
    command = [sys.executable, "-m", "trainer.cli.main", *words(world, "cache", 2, second)]
    environment = one_thread() | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    for process in running:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    assert len(list(verify_lines(second, request(world, 2), 8))) == 4
    assert not list(world.articles.columns_dir.glob(f"*{ExactNews.name}*"))
    for shard_set in (world.articles, world.impressions):
        assert not list(shard_set.columns_dir.glob("**/.*tmp-*"))
    done = tnr(*words(world, "cache", 1, first), processes=2)
    assert done.returncode == 0, done.stderr
    total = len(cells_of(first, request(world, 1)))
    filled = [line for line in done.stdout.splitlines() if "cells filled" in line]
    assert len(filled) == 2 and all(f"[{rank}] " in done.stdout for rank in (0, 1))
    assert sum(int(line.split("done: ")[1].split()[0]) for line in filled) == total
    assert len(list(verify_lines(first, request(world, 1), 8))) == 2
