"""Killed in the middle of a save, a deletion or an export; disks that refuse (A2 to A5, A8, B3)."""

import errno
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest
from helpers.dying import die, run_child, train_and_die, train_and_die_in_the_grace_time
from helpers.inprocess import state, train, train_until_crash, weights
from helpers.launch import metrics
from helpers.toy_clicks import ClickToyData, make_task

from trainer.checkpoint.hashed import HashedFile
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError, TinyNewsRecError
from trainer.export.folder import export_model, load_export

WAYS = pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def goes_on(run: Path, whole: Path, begun: int, capsys, **changes) -> None:
    """Start again: from the expected step, to the same end, with no leftovers."""
    capsys.readouterr()
    train(run, **changes)
    said = capsys.readouterr().out
    assert f"step {begun} to 20" in said
    assert "passed over" not in said
    assert metrics(run) == metrics(whole)
    assert weights(run / "export") == weights(whole / "export")
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def killed_at(run: Path, place: str, step: int, background: bool, **changes) -> None:
    changes = {"run__background_saves": background, **changes}
    assert run_child(train_and_die, run, place, step, changes) == -signal.SIGKILL
    assert state(run)["state"] == "running"


@WAYS
@pytest.mark.parametrize("place", ["model file", "optimizer file", "before the manifest"])
def test_a2_killed_while_a_file_is_written(tmp_path, whole, capsys, place, background):
    run = tmp_path / "run"
    killed_at(run, place, 10, background)
    (left,) = (run / "checkpoints").glob(".step_00000010.tmp-*")
    assert (left / "model.safetensors").exists()
    assert state(run)["step"] == 5
    goes_on(run, whole, 5, capsys)


@WAYS
@pytest.mark.parametrize(
    ("place", "begun"),
    [("before the commit", 5), ("after the commit", 10), ("before latest moves", 10)],
)
def test_a3_killed_before_and_after_the_commit(tmp_path, whole, capsys, place, begun, background):
    run = tmp_path / "run"
    killed_at(run, place, 10, background)
    # Even after the commit, latest still names the one before; the folders decide.
    assert (run / "checkpoints" / "latest").read_text() == "step_00000005\n"
    goes_on(run, whole, begun, capsys)


@WAYS
@pytest.mark.parametrize("place", ["before the old one is hidden", "while the old one is deleted"])
def test_a4_killed_while_an_old_checkpoint_is_deleted(tmp_path, whole, capsys, place, background):
    run = tmp_path / "run"
    killed_at(run, place, 5, background, run__keep_checkpoints=1)
    names = {path.name.partition("-")[0] for path in (run / "checkpoints").iterdir()}
    assert ("step_00000005" in names) == (place == "before the old one is hidden")
    assert (".deleting" in names) == (place == "while the old one is deleted")
    goes_on(run, whole, 10, capsys, run__keep_checkpoints=1)
    assert len(list((run / "checkpoints").glob("step_*"))) == 1


def export_recommender(model, folder, info) -> None:
    export_model(model, folder, None, info)


def train_recommender(run: Path, export=export_recommender, **changes) -> None:
    train(run, data=ClickToyData(3), make_task=make_task, export=export, **changes)


def die_in_export(run: Path, place: str) -> None:
    """In a child: train four steps, and be gone while or right before the export appears."""

    def export(model, folder, info):
        if place == "weights":

            def save_half(target):
                Path(target).mkdir()
                (Path(target) / "model.safetensors").write_bytes(b"half")
                die()

            model.save_pretrained = save_half
        else:
            real = Path.rename
            Path.rename = lambda self, to: die() if Path(to) == folder else real(self, to)
        export_recommender(model, folder, info)

    train_recommender(run, export, run__max_steps=4)


@pytest.mark.parametrize("place", ["weights", "before the commit"])
def test_a5_killed_while_exporting(tmp_path, capsys, place):
    """The checkpoint is untouched; the same command only exports."""
    run = tmp_path / "run"
    assert run_child(die_in_export, run, place) == -signal.SIGKILL
    assert not (run / "export").exists()
    source = run / "checkpoints" / "step_00000004"
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    train_recommender(run, run__max_steps=4)
    assert "step 4 to 4" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    train_recommender(tmp_path / "whole", run__max_steps=4)
    ours, theirs = (load_export(folder / "export") for folder in (run, tmp_path / "whole"))
    assert ours.weights_sha256 == theirs.weights_sha256
    assert ours.load_model() is not None
    assert not list(run.glob(".export*"))


def test_a5_killed_while_an_export_is_replaced(tmp_path):
    """The one before is back as soon as the next start exports, and nothing else stays."""
    run = tmp_path / "run"
    train_recommender(run, run__max_steps=2)
    before = load_export(run / "export").weights_sha256
    assert run_child(die_in_export, run, "before the commit") == -signal.SIGKILL
    assert not (run / "export").exists()
    assert run_child(die_in_export, run, "weights") == -signal.SIGKILL
    assert load_export(run / "export").weights_sha256 == before
    train_recommender(run, run__max_steps=4)
    assert load_export(run / "export").weights_sha256 != before
    assert not list(run.glob(".export*"))


@WAYS
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a8_disk_refuses_and_the_run_stops_with_what_it_had(
    tmp_path, whole, capsys, monkeypatch, number, background
):
    """In the background the error arrives at a later step, never not at all."""
    run, real = tmp_path / "run", HashedFile.write

    def refuse(self, data):
        if "step_00000010" in self._file.name:
            raise OSError(number, os.strerror(number))
        real(self, data)

    monkeypatch.setattr(HashedFile, "write", refuse)
    with pytest.raises(CheckpointError, match=rf"step 10 .*{os.strerror(number)}.*intact"):
        train(run, run__background_saves=background)
    monkeypatch.undo()
    assert state(run)["state"] == "stopped"
    assert state(run)["step"] == 5
    assert os.strerror(number) in state(run)["reason"]
    assert max(metrics(run)) < 20
    goes_on(run, whole, 5, capsys)


def train_with_little_room(run: Path) -> None:
    """The system's own limit on the size of a file, smaller than the checkpoint's, once it is
    written: the run's other files may be larger."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real = CheckpointStore.save

    def save(self, *arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
        return real(self, *arguments)

    CheckpointStore.save = save  # type: ignore[method-assign]
    try:
        train(run, run__log_every=1000)
    except CheckpointError as error:
        os._exit(42 if "File too large" in str(error) else 1)
    os._exit(2)


def test_a8_files_that_may_not_grow(tmp_path, whole, capsys):
    run = tmp_path / "run"
    assert run_child(train_with_little_room, run) == 42
    assert not list((run / "checkpoints").glob("*step_*"))
    goes_on(run, whole, 0, capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a8_disk_that_is_full(tmp_path, whole, capsys):
    """A real small file system; after room is made the same command goes on."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = mount / "run"
        train_until_crash(run, 7)
        filler = mount / "filler"
        with (
            filler.open("wb", buffering=0) as file,
            pytest.raises(OSError, match="No space left"),
        ):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - 16_384)
        with pytest.raises(TinyNewsRecError, match="No space left"):
            train(run)
        assert (run / "checkpoints" / "step_00000005" / "manifest.json").exists()
        filler.unlink()
        goes_on(run, whole, 5, capsys)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_b3_grace_time_shorter_than_the_save(tmp_path, whole, capsys):
    """SIGTERM, and SIGKILL while the checkpoint is written: the one before is gone on from."""
    run = tmp_path / "run"
    train(run, run__max_steps=4)
    seldom = {"run__checkpoint_every": 100}
    assert run_child(train_and_die_in_the_grace_time, run, 11, seldom) == -signal.SIGKILL
    (left,) = (run / "checkpoints").glob(".step_*.tmp-*")
    assert 8 <= int(left.name[6:14]) <= 12  # what SIGTERM asked for, not the last step's
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000004"]
    goes_on(run, whole, 4, capsys)
