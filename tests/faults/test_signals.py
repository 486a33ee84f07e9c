"""Signals at awkward moments: twice, before the first step, during a save or a copy."""

import os
import re
import signal
import sys
import time

import pytest
from helpers.dying import run_child
from helpers.inprocess import state, train, train_until_crash, weights
from helpers.launch import metrics
from helpers.toy import ToyData, ToyTask
from helpers.train_toy import save_export

from trainer.checkpoint.hashed import HashedFile
from trainer.engine import signals
from trainer.errors import EXIT_REQUEUE, StopForRequeue


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


def checkpoints(run) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def goes_on(run, whole, begun: int, capsys, **changes) -> None:
    capsys.readouterr()
    train(run, **changes)
    assert f"step {begun} to 20" in capsys.readouterr().out
    assert metrics(run) == metrics(whole)
    assert weights(run / "export") == weights(whole / "export")


class Early(ToyTask):
    """Is sent a signal while the optimizer is built."""

    def parameter_groups(self, config):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().parameter_groups(config)


def test_b2_signal_before_the_first_step_stops_there_and_loses_nothing(tmp_path, whole, capsys):
    run = tmp_path / "run"
    with pytest.raises(StopForRequeue, match=r"SIGTERM: stopped at step 0 of 20, before the first"):
        train(run, make_task=Early)
    assert (state(run)["state"], state(run)["step"]) == ("stopped", 0)
    assert not (run / "checkpoints").exists()
    train_until_crash(run, 7)
    with pytest.raises(StopForRequeue, match="stopped at step 5 of 20"):
        train(run, make_task=Early)
    assert (state(run)["step"], checkpoints(run)) == (5, [5])
    goes_on(run, whole, 5, capsys)


def start_and_be_asked_to_stop(number: int) -> None:
    """In a child: the command itself, with a signal while the data are opened."""
    from trainer.cli.main import main
    from trainer.tasks import build

    build.build = lambda config, tick: os.kill(os.getpid(), number)
    sys.exit(main(["train", "post_train", "--data.articles", "nowhere", "--run.dir", "run"]))


def test_b2_signal_while_the_command_starts_asks_to_be_started_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        assert run_child(start_and_be_asked_to_stop, number) == EXIT_REQUEUE
    assert list(tmp_path.iterdir()) == []


class Signalled(ToyData):
    """Sends this process a signal when the samples of step 8 are asked for."""

    def collate(self, batch_rows):
        if batch_rows.position.samples == 64 and batch_rows.rows[0] == self.first:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().collate(batch_rows)

    @property
    def first(self) -> int:
        """The first sample of step 8: its second micro-batch sends nothing."""
        return int(self.order.span(56, 57)[0][0])


def train_signalled_twice(run) -> None:
    """In a child: the second signal comes while the checkpoint that the first made is written."""
    signals.SAME_REQUEST_S = 0.0
    real = HashedFile.write

    def write(self, data):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(20)
        real(self, data)

    HashedFile.write = write
    train(run, data=Signalled(seed=3), run__checkpoint_every=100)


def test_b2_second_signal_ends_at_once_without_a_checkpoint(tmp_path, whole, capsys):
    run, began = tmp_path / "run", time.monotonic()
    assert run_child(train_signalled_twice, run) == 128 + signal.SIGUSR1
    assert time.monotonic() - began < 20
    assert (state(run)["state"], checkpoints(run)) == ("running", [])
    goes_on(run, whole, 0, capsys)


@pytest.mark.parametrize("background", [True, False])
def test_b2_signal_during_a_save_lets_it_end_and_makes_one_more(
    tmp_path, whole, capsys, monkeypatch, background
):
    run, real = tmp_path / "run", HashedFile.write

    def write(self, data):
        if "step_00000010" in self._file.name and self._file.name.endswith("model.safetensors"):
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, data)

    monkeypatch.setattr(HashedFile, "write", write)
    with pytest.raises(StopForRequeue) as error:
        train(run, run__background_saves=background, run__keep_checkpoints=9)
    monkeypatch.undo()
    (step,) = map(int, re.findall(r"SIGTERM: stopped after step (\d+) of 20", str(error.value)))
    assert step > 10
    assert checkpoints(run) == sorted({5, 10, *range(15, step, 5), step})
    assert state(run)["step"] == step
    goes_on(run, whole, step, capsys, run__keep_checkpoints=9)


def test_b2_signal_during_a_copy_or_the_export_lets_it_end(tmp_path, whole, capsys):
    run = tmp_path / "run"

    def export(model, folder, info):
        os.kill(os.getpid(), signal.SIGTERM)
        save_export(model, folder, info)

    copies = {"run__copies__rule": "list", "run__copies__steps": (12,)}
    with pytest.raises(StopForRequeue, match="SIGTERM: stopped after step 13 of 20"):
        train(run, export=export, **copies)
    assert checkpoints(run)[-1] == 13
    assert weights(run / "copies" / "step_00000012")
    # At the end there is nothing left to stop: the run finishes.
    train(run, export=export, **copies)
    assert state(run)["state"] == "finished"
    assert weights(run / "export") == weights(whole / "export")
