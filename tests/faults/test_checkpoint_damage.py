"""Damaged and half-written checkpoints: found, said, and never a silent start from scratch."""

import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.inprocess import state, train, train_until_crash, weights
from helpers.launch import metrics

from trainer.checkpoint import store as store_module
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.tensors import write_tensors
from trainer.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def zero_block(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 3)
        file.write(bytes(min(4096, size - size // 3)))


DAMAGES = (truncate, flip_bit, zero_block, Path.unlink)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run with checkpoints of steps 5 and 10 that crashed in step 14."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train_until_crash(folder, 13)
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_newest_is_passed_over_loudly_for_the_one_before(run, whole, capsys, name, damage):
    newest = run / "checkpoints" / "step_00000010"
    damage(newest / name)
    train(run)
    said = capsys.readouterr().out
    assert "WARNING: checkpoint passed over" in said
    assert str(newest) in said
    assert "step 5 to 20" in said
    assert metrics(run) == metrics(whole)
    assert weights(run / "export") == weights(whole / "export")


def test_only_damaged_ones_stop_the_run(run):
    for step in ("step_00000005", "step_00000010"):
        flip_bit(run / "checkpoints" / step / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints.*sha256"):
        train(run)
    assert (run / "checkpoints" / "step_00000005").exists()
    assert max(metrics(run)) == 13


@pytest.mark.parametrize("how", ["folders", "everything"])
def test_checkpoints_that_are_gone_stop_the_run(run, how):
    for step in ("step_00000005", "step_00000010"):
        shutil.rmtree(run / "checkpoints" / step)
    if how == "everything":
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"put it back|are gone"):
        train(run)


@pytest.mark.parametrize("latest", [None, ""])
def test_empty_or_missing_latest_is_no_fresh_start(run, whole, capsys, latest):
    path = run / "checkpoints" / "latest"
    path.unlink() if latest is None else path.write_text(latest)
    train(run)
    assert "step 10 to 20" in capsys.readouterr().out
    assert metrics(run) == metrics(whole)


def kill_at(place: str, folder: Path) -> None:
    """In a child process: save step 10 over an existing step 5, and die at a place of it."""

    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    store = CheckpointStore(folder, Retention(newest=1), print)
    real_publish, real_delete = store._publish, store._delete

    def write(target: Path) -> None:
        (target / "model.bin").write_bytes(b"new" * 1000)
        if place == "while writing":
            die()

    if place == "before the manifest":
        store._write_manifest = die
    elif place == "before the rename":
        store._publish = die
    elif place == "after the rename":
        store._publish = lambda *paths: (real_publish(*paths), die())
    elif place == "while deleting":
        store_module.shutil.rmtree = die
        store._delete = lambda path: real_delete(path)
    store.save(10, {}, write)
    os._exit(3)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("while writing", 5),
        ("before the manifest", 5),
        ("before the rename", 5),
        ("after the rename", 10),
        ("while deleting", 10),
    ],
)
def test_killed_while_saving(tmp_path, place, expected):
    folder = tmp_path / "checkpoints"
    store = CheckpointStore(folder, Retention(newest=1), print)
    store.save(5, {}, lambda target: (target / "model.bin").write_bytes(b"old"))
    child = multiprocessing.get_context("spawn").Process(target=kill_at, args=(place, folder))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert store.find().step == expected
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    store.save(15, {}, lambda target: None)
    assert store.steps() == [15]


def save_with_little_room(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tensors = {"weight": torch.zeros(100_000)}
    try:
        CheckpointStore(folder, Retention(newest=1), print).save(
            10, {}, lambda target: write_tensors(target, tensors, tensors)
        )
    except CheckpointError as error:
        os._exit(42 if "could not be written" in str(error) else 1)
    os._exit(2)


def test_disk_that_is_full_while_tensors_are_written(tmp_path):
    folder = tmp_path / "checkpoints"
    store = CheckpointStore(folder, Retention(newest=1), print)
    store.save(5, {}, lambda target: (target / "model.bin").write_bytes(b"old"))
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=save_with_little_room, args=(folder,))
    child.start()
    child.join(120)
    assert child.exitcode == 42
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000005"]
    assert store.find().step == 5


def test_failing_save_stops_training_and_says_so(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.engine.saving.write_tensors", full)
    with pytest.raises(CheckpointError, match=r"step 5 .*No space left"):
        train(tmp_path / "run")
    assert state(tmp_path / "run")["state"] == "stopped"
    assert "No space left" in state(tmp_path / "run")["reason"]
