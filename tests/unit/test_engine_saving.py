"""Saves in the background, and which checkpoints of a run stay."""

import errno
import os
import signal
import threading

import pytest
from helpers.inprocess import state, train, train_until_crash, weights
from helpers.launch import metrics, settings
from helpers.toy import ToyData, ToyTask

from trainer.checkpoint.hashed import HashedFile
from trainer.config.validate import validate
from trainer.errors import CheckpointError, ConfigError
from trainer.recipes.load import from_settings


def checkpoints(run) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def test_training_goes_on_while_a_checkpoint_of_what_was_is_written(tmp_path, monkeypatch):
    """The save of step 5 waits for step 8 to be computed; one in the foreground never could."""
    reached, real = threading.Event(), HashedFile.write
    seen = []

    class Counting(ToyTask):
        calls = 0

        def forward(self, batch):
            self.calls += 1
            if self.calls == 2 * 8:  # two micro-batches a step
                seen.append(state(tmp_path / "run")["step"])
                reached.set()
            return super().forward(batch)

    def write(self, data):
        if "step_00000005" in self._file.name:
            assert reached.wait(60), "training waits for the save"
        real(self, data)

    monkeypatch.setattr(HashedFile, "write", write)
    keep = {"run__keep_checkpoints": 9, "run__max_steps": 12}
    train(tmp_path / "run", make_task=Counting, **keep)
    monkeypatch.undo()
    assert seen == [0]  # a checkpoint is spoken of once it is there
    train(tmp_path / "foreground", run__background_saves=False, **keep)
    assert checkpoints(tmp_path / "run") == [5, 10, 12]
    for step in checkpoints(tmp_path / "run"):
        for name in ("model.safetensors", "optimizer.safetensors"):
            ours, theirs = (
                (tmp_path / run / "checkpoints" / f"step_{step:08d}" / name).read_bytes()
                for run in ("run", "foreground")
            )
            assert ours == theirs
    assert not [thread for thread in threading.enumerate() if thread.name == "save"]


@pytest.mark.parametrize("best_is", ["lowest", "highest"])
def test_best_newest_and_multiples_stay_and_a_crash_changes_nothing(tmp_path, best_is):
    changes = {
        "run__checkpoint_every": 2,
        "run__keep_checkpoints": 1,
        "run__keep_every": 8,
        "run__best_metric": "train/loss",
        "run__best_is": best_is,
    }
    run = tmp_path / "run"
    train_until_crash(run, 13, **changes)
    train(run, **changes)
    losses = {step: loss for step, loss in metrics(run).items() if step % 2 == 0}
    choose = min if best_is == "lowest" else max
    best = choose(losses, key=lambda step: losses[step])
    assert checkpoints(run) == sorted({8, 16, 20, best})
    assert (run / "checkpoints" / "best").read_text() == f"step_{best:08d}\n"
    train(tmp_path / "whole", **changes)
    assert checkpoints(tmp_path / "whole") == checkpoints(run)
    assert weights(tmp_path / "whole" / "export") == weights(run / "export")


def test_a_stop_whose_checkpoint_cannot_be_written_asks_for_no_requeue(tmp_path, monkeypatch):
    """It waits for the save: that the same command goes on from there would not be true."""

    class Signalling(ToyData):
        def collate(self, batch_rows):
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().collate(batch_rows)

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HashedFile, "write", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(tmp_path / "run", data=Signalling(seed=3))
    assert checkpoints(tmp_path / "run") == []


def test_metric_that_is_never_logged_ends_the_run_at_once_naming_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match=r"best_metric is 'eval/auc'.* train/loss"):
        train(tmp_path / "run", run__best_metric="eval/auc")
    assert max(metrics(tmp_path / "run")) == 1


def test_interval_that_no_checkpoint_meets_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"keep_every 12 is not a multiple .* 5.*: take 15"):
        validate(from_settings(settings(tmp_path, run__keep_every=12), where="test"))
