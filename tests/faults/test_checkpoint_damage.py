"""Damaged checkpoints are found and said; never a silent start from scratch (A6, A7)."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.inprocess import train, train_until_crash, weights
from helpers.launch import metrics

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
def test_a6_damaged_newest_is_passed_over_loudly_for_the_one_before(
    run, whole, capsys, name, damage
):
    newest = run / "checkpoints" / "step_00000010"
    damage(newest / name)
    train(run)
    said = capsys.readouterr().out
    assert "WARNING: checkpoint skipped" in said
    assert str(newest) in said
    assert "step 5 to 20" in said
    assert metrics(run) == metrics(whole)
    assert weights(run / "export") == weights(whole / "export")


def test_a6_only_damaged_ones_stop_the_run(run):
    for step in ("step_00000005", "step_00000010"):
        flip_bit(run / "checkpoints" / step / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints.*sha256"):
        train(run)
    assert (run / "checkpoints" / "step_00000005").exists()
    assert max(metrics(run)) == 13


@pytest.mark.parametrize("how", ["folders", "everything"])
def test_a7_checkpoints_that_are_gone_stop_the_run(run, how):
    for step in ("step_00000005", "step_00000010"):
        shutil.rmtree(run / "checkpoints" / step)
    if how == "everything":
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"put it back|are missing"):
        train(run)


@pytest.mark.parametrize("latest", [None, ""])
def test_a7_empty_or_missing_latest_is_no_fresh_start(run, whole, capsys, latest):
    path = run / "checkpoints" / "latest"
    path.unlink() if latest is None else path.write_text(latest)
    train(run)
    assert "step 10 to 20" in capsys.readouterr().out
    assert metrics(run) == metrics(whole)
