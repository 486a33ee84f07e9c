"""F1: a network file system shows a rename late, or refuses a handle that has become stale."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from helpers.checkpoints import make_store

from shards import stale
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError

LIMIT_S = sum(stale.WAITS_S)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> CheckpointStore:
    """Checkpoints of steps 5 and 10."""
    return make_store(tmp_path / "checkpoints", warnings.append, 5, 10)


@pytest.mark.parametrize("name", ["manifest.json", "model", "state.json"])
def test_f1_a_file_that_is_seen_late_is_waited_for(
    name: str, store: CheckpointStore, warnings: list[str]
) -> None:
    late = store.path(10) / name
    hidden = late.rename(late.with_name("hidden"))
    appears = threading.Timer(0.2, hidden.rename, [late])
    appears.start()
    newest = store.find()
    appears.join()
    assert newest is not None and newest.step == 10 and warnings == []


def test_f1_a_stale_handle_is_tried_again(
    store: CheckpointStore, warnings: list[str], monkeypatch
) -> None:
    opened, real = [], os.open

    def refuse_twice(path, *args, **kwargs):
        if Path(path).name == "model":
            opened.append(path)
            if len(opened) <= 2:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse_twice)
    newest = store.find()
    assert newest is not None and newest.step == 10 and warnings == []
    assert len(opened) == 3


def test_f1_a_file_that_stays_away_is_given_up_within_the_limit(
    store: CheckpointStore, warnings: list[str]
) -> None:
    (store.path(10) / "model").unlink()
    start = time.monotonic()
    newest = store.find()
    took = time.monotonic() - start
    assert newest is not None and newest.step == 5
    assert LIMIT_S <= took < LIMIT_S + 5
    assert len(warnings) >= 1 and "model cannot be read" in warnings[0]


def test_f1_damage_is_not_waited_for(store: CheckpointStore, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(stale.time, "sleep", waits.append)
    (store.path(10) / "model").write_text("nothing")  # of the same length
    with pytest.raises(CheckpointError, match="another sha256"):
        store.verify(10)
    assert waits == []
    (store.path(5) / "model").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.verify(5)
    assert waits == list(stale.WAITS_S)
