"""A stop in the middle of a cell: it is finished where it is nearly done, else given up at once."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles
from helpers.teacher_columns import columns_of, forget, request, silent, teachers_of
from helpers.world import make_world

import shards.tokenize
from shards.columns import ColumnReader, list_columns
from shards.errors import StoppedError
from shards.stopping import GRACE_S, Pace, Stopping, stop_on_sigterm
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from trainer.engine.signals import StopRequest
from trainer.errors import StopForRequeue
from trainer.frozen import fill as frozen_fill
from trainer.tasks.build import build
from trainer.teacher_server.fill import fill


def test_the_pace_of_the_first_part_tells_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 14.0, 14.0, 20.0])
    monkeypatch.setattr("shards.stopping.time.monotonic", lambda: next(now))
    pace = Pace(100)
    assert pace.left_s == math.inf
    assert pace.add(80) == 80
    assert pace.left_s == pytest.approx(1.0)  # 4 s for 80, 20 are left
    assert pace.add(50) == 20
    assert pace.left_s == 0.0


@pytest.mark.parametrize("make", [StopRequest, Stopping])
def test_work_goes_on_as_long_as_it_ends_within_the_grace(
    make: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stop = make()
    stop.check()
    stop.handle(signal.SIGTERM, None)
    for error in (StopForRequeue, StoppedError):
        if make is (StopRequest if error is StopForRequeue else Stopping):
            stop.check(GRACE_S - 1)
            now[0] += GRACE_S / 2
            with pytest.raises(error, match="stopped by SIGTERM"):
                stop.check(GRACE_S - 1)
            with pytest.raises(error):
                stop.check()


class StopAfter(StopRequest):
    """Asked to stop when the second batch of a cell is counted."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._batches = batches

    def check(self, left_s: float = math.inf) -> None:
        """Count, and be asked."""
        self._batches -= 1
        if self._batches == 0:
            self.handle(signal.SIGTERM, None)
        super().check(left_s)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("nearly_done", [True, False])
def test_a_teachers_cell_that_is_nearly_done_is_finished(
    tmp_path: Path, stage: int, nearly_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, num_articles=20, num_impressions=20)
    teacher = teachers_of(world, stage, 1)
    fill(teacher, request(world, stage, batch_tokens=64), silent)
    at_once = columns_of(world)
    forget(world)
    monkeypatch.setattr(Pace, "left_s", 1.0 if nearly_done else math.inf)
    with pytest.raises(StopForRequeue, match=r"SIGTERM: \d of \d cells are left") as stopped:
        fill(teacher, request(world, stage, batch_tokens=64), silent, stop=StopAfter(3))
    assert stopped.value.exit_code == 75
    kept = [name for name in columns_of(world) if name.endswith(".safetensors")]
    assert len([name for name in kept if "exact" not in name]) == (1 if nearly_done else 0)
    fill(teacher, request(world, stage, batch_tokens=64), silent)
    assert columns_of(world) == at_once


@pytest.mark.parametrize("nearly_done", [True, False])
def test_a_cell_of_frozen_states_that_is_nearly_done_is_finished(
    tmp_path: Path, nearly_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, num_articles=20, num_impressions=20)
    config = world.config(
        "finetune",
        model__frozen_states="float32",
        model__trainable_layers=1,
        data__batch_tokens=64,
    )
    monkeypatch.setattr(Pace, "left_s", 1.0 if nearly_done else math.inf)
    asked = StopAfter(3)
    with monkeypatch.context() as patch:
        init = frozen_fill.StateFiller.__init__

        def with_stop(self: object, *args: object, **options: object) -> None:
            init(self, *args, **{**options, "stop": asked})  # type: ignore[arg-type]

        patch.setattr(frozen_fill.StateFiller, "__init__", with_stop)
        with pytest.raises(StopForRequeue, match="stopped by SIGTERM"):
            build(config)
    (column,) = list_columns(world.articles, "frozen-states")
    kept = len(list(column.folder.glob("*.safetensors")))
    assert kept == (1 if nearly_done else 0)
    build(config)


@pytest.mark.parametrize("nearly_done", [True, False])
def test_a_cell_of_tokens_that_is_nearly_done_is_finished(
    tmp_path: Path, nearly_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    articles = make_articles(tmp_path / "set", 24, 8)
    train_tokenizer(articles, tmp_path / "tokenizer", 200)
    monkeypatch.setattr(shards.tokenize, "_BATCH", 2)
    monkeypatch.setattr(Pace, "left_s", 1.0 if nearly_done else math.inf)
    encode, calls = shards.tokenize.TextEncoder.encode, []

    def encode_and_stop(self, texts, limit):
        calls.append(limit)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, texts, limit)

    former = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(shards.tokenize.TextEncoder, "encode", encode_and_stop)
        left = 2 if nearly_done else 3
        with pytest.raises(StoppedError, match=rf"stopped by SIGTERM: {left} of 3 cells") as told:
            tokenize_set(articles, tmp_path / "tokenizer")
    assert told.value.exit_code == 75 and signal.getsignal(signal.SIGTERM) is former
    assert tokenize_set(articles, tmp_path / "tokenizer").lengths("title", np.arange(24)).all()


@pytest.mark.parametrize("to_group", [True, False])
def test_tokenizing_processes_keep_the_cells_that_they_have_in_hand(
    tmp_path: Path, to_group: bool
) -> None:
    """SIGTERM to the command, as a person sends it, or to all its processes, as Slurm does."""
    articles = make_articles(tmp_path / "set", 1200, 8)
    train_tokenizer(articles, tmp_path / "tokenizer", 200)
    words = ["shards", "tokenize", str(articles.path), "--tokenizer", str(tmp_path / "tokenizer")]
    command = [sys.executable, "-m", "trainer.cli.main", *words, "--processes", "2"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(os.environ)
    )
    deadline = time.monotonic() + 60
    while not list(articles.columns_dir.glob("tokens-*/news-*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode == 75 and "of 150 cells are left; committed cells are kept" in err
    (folder,) = articles.columns_dir.glob("tokens-*")
    kept = len(list(folder.glob("news-*.json")))
    assert 0 < kept < 150 and not list(folder.glob(".*.tmp-*"))
    assert len(list(folder.glob("news-*.safetensors"))) == kept
    reader = tokenize_set(articles, tmp_path / "tokenizer")
    assert isinstance(reader, ColumnReader)


def test_a_thread_that_cannot_catch_signals_tokenizes_too() -> None:
    import threading

    seen = []

    def run() -> None:
        with stop_on_sigterm() as stopping:
            seen.append(stopping.is_asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]
