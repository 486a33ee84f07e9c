"""Steps that are not finite: stopped at, left out, or gone back from; all of it deterministic."""

import dataclasses
import json

import pytest
import torch
from helpers.inprocess import state, train, train_until_crash, weights
from helpers.launch import metrics
from helpers.toy import ToyData, ToyTask
from safetensors.torch import load_file

from trainer.config.schema import RunConfig
from trainer.engine import loss_scale
from trainer.engine.backends import StepResult
from trainer.engine.not_finite import NotFinite, spread
from trainer.engine.step import Step
from trainer.errors import TrainingError

UNITS = 240
"""More than the runs below consume: no bad sample comes twice."""


def rows_of_step(step: int) -> list[int]:
    return poisoned().order.span(8 * (step - 1), 8 * step)[0].tolist()


def poisoned(*steps: int, slot: int = 5) -> ToyData:
    """Data with one NaN in the global batch of each of these steps."""
    rows = frozenset(rows_of_step(step)[slot] for step in steps)
    return ToyData(seed=3, num_units=UNITS, poisoned=rows)


def checkpoint_state(run):
    name = (run / "checkpoints" / "latest").read_text().strip()
    return json.loads((run / "checkpoints" / name / "state.json").read_text())


class Drifting(ToyTask):
    """Its buffer is another one after every forward, and the loss depends on it."""

    def forward(self, batch):
        self.model.scale.mul_(0.99)
        return super().forward(batch)


class Infinite(ToyTask):
    """Its loss stays finite, but its gradient is infinite wherever a sample is marked."""

    def forward(self, batch):
        marked = torch.isnan(batch.poison).any()
        healthy = dataclasses.replace(batch, poison=torch.zeros_like(batch.poison))
        outputs = super().forward(healthy)
        weight = self.projection.weight
        if marked:
            outputs["loss"] = outputs["loss"] + torch.sqrt((weight - weight.detach()).sum())
        return outputs


def test_a_finite_loss_and_its_gradient_pass_to_the_bit_and_others_give_no_number():
    value = torch.tensor(0.1, requires_grad=True)
    (grad,) = torch.autograd.grad(spread(value * 3), value)
    assert (spread(value).item(), grad.item()) == (value.item(), 3.0)
    (grad,) = torch.autograd.grad(spread(value * 3 + torch.inf), value)
    assert torch.isnan(grad)


def test_an_overflow_of_fp16_is_no_fault_but_a_loss_that_is_not_finite_is():
    faults = NotFinite(RunConfig(global_batch=8), ToyData().order, print)

    def goes_back(bad_rank, result):
        step = Step(1)
        step.position, step.result = ToyData().order.position_at(8), result
        faults.on_flag(0 if bad_rank is None else bad_rank + 1)
        return faults.goes_back(step)

    overflow = StepResult(float("inf"), is_applied=False, loss_scale=1024.0)
    assert not goes_back(None, overflow)
    assert faults.faults == []
    with pytest.raises(TrainingError, match="loss is not finite in step 1 on rank 3"):
        goes_back(3, overflow)
    at_the_floor = StepResult(float("inf"), is_applied=False, loss_scale=None)
    with pytest.raises(TrainingError, match="gradient is not finite in step 1"):
        goes_back(None, at_the_floor)
    with pytest.raises(TrainingError, match="but the weights were updated"):
        goes_back(0, StepResult(1.0, is_applied=True))


@pytest.mark.parametrize("make_task", [ToyTask, Infinite], ids=["loss", "gradient"])
def test_skip_leaves_weights_and_optimizer_and_goes_on(tmp_path, capsys, make_task):
    """The bad step changes nothing; Adam counts updates, not steps."""
    run = tmp_path / "run"
    options = {"make_task": make_task, "run__not_finite": "skip", "run__checkpoint_every": 1}
    train(run, data=poisoned(4), run__max_steps=4, run__keep_checkpoints=9, **options)
    third, fourth = (
        load_file(run / "checkpoints" / f"step_0000000{n}" / "model.safetensors") for n in (3, 4)
    )
    assert third.keys() == fourth.keys()
    assert all(torch.equal(third[name], fourth[name]) for name in third)
    said = capsys.readouterr().out
    what = "loss is not finite in step 4 on rank 0" if make_task is ToyTask else "gradient is not"
    assert what in said
    assert "left out (1 of at most 10); rows of its global batch: " in said
    assert all(str(row) in said for row in rows_of_step(4))
    kept = checkpoint_state(run)
    assert kept["backend"]["updates"] == 3
    what, rank = ("loss", 0) if make_task is ToyTask else ("gradient", None)
    fault = {"step": 4, "what": what, "rank": rank, "samples": 32}
    assert kept["not_finite"] == [fault]
    assert metrics_of_step(run, 4)["train/skipped_steps"] == 1.0
    assert "train/skipped_steps" not in metrics_of_step(run, 3)


def metrics_of_step(run, step):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return next(r for r in map(json.loads, lines) if r["step"] == step)


@pytest.mark.parametrize("policy", ["skip", "reload"])
def test_resumed_run_with_bad_steps_ends_as_one_that_was_never_stopped(tmp_path, policy):
    """Stopped after a bad step, with a checkpoint between it and the end, and before a second."""
    options = {"run__not_finite": policy, "make_task": lambda: ToyTask(dropout=0.3)}
    train(tmp_path / "whole", data=poisoned(4, 13), **options)
    crash = CrashAfter(8 * 12, poisoned(4, 13))
    with pytest.raises(TrainingError, match="crash of the test"):
        train(tmp_path / "torn", data=crash, **options)
    assert state(tmp_path / "torn")["step"] == 10
    train(tmp_path / "torn", data=poisoned(4, 13), **options)
    train(tmp_path / "again", data=poisoned(4, 13), **options)
    for run in ("torn", "again"):
        assert weights(tmp_path / run / "export") == weights(tmp_path / "whole" / "export")
    assert [f["step"] for f in checkpoint_state(tmp_path / "torn")["not_finite"]] == (
        [4, 13] if policy == "skip" else [4, 12]
    )
    clean = tmp_path / "clean"
    train(clean, data=poisoned(), **options)
    assert weights(clean / "export") != weights(tmp_path / "whole" / "export")


class CrashAfter(ToyData):
    """Like other data, until a batch past so many samples is asked for."""

    def __init__(self, samples, data):
        self.__dict__.update(data.__dict__)
        self._samples = samples

    def collate(self, batch_rows):
        if batch_rows.position.epoch == 0 and batch_rows.position.samples > self._samples:
            raise TrainingError("crash of the test")
        return super().collate(batch_rows)


class Without(ToyData):
    """The same order with one global batch cut out of it."""

    def __init__(self, step: int) -> None:
        super().__init__(seed=3, num_units=UNITS)
        cut, span = 8 * (step - 1), self.order.span

        def shorter(start, stop):
            return span(start, stop) if stop <= cut else span(start + 8, stop + 8)

        self.order.span = shorter


@pytest.mark.parametrize(("bad", "begun"), [(8, 5), (2, 0)])
def test_reload_trains_as_if_the_batch_had_never_been_there(tmp_path, capsys, bad, begun):
    """Bad in step 2, before any checkpoint of its own, the run goes back to its very start."""
    drifting = {"make_task": Drifting}
    train(tmp_path / "run", data=poisoned(bad), run__not_finite="reload", **drifting)
    said = capsys.readouterr().out
    assert f"not finite in step {bad} on rank 0; rolling back, without this batch (1 of" in said
    train(tmp_path / "without", data=Without(bad), **drifting)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "without")
    assert weights(tmp_path / "run" / "export") == weights(tmp_path / "without" / "export")
    first = json.loads((tmp_path / "run" / "starts.jsonl").read_text().splitlines()[0])
    assert first["from_step"] == 0
    assert len((tmp_path / "run" / "starts.jsonl").read_text().splitlines()) == 1


def test_reload_takes_the_loss_scale_back_too(tmp_path, monkeypatch):
    """The scale grows between the checkpoint and the bad step, which then halves it."""
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    for name, data in (("run", poisoned(8)), ("without", Without(8))):
        options = {"run__not_finite": "reload", "run__precision": "fp16", "run__max_steps": 10}
        train(tmp_path / name, data=data, **options)
    assert checkpoint_state(tmp_path / "run")["not_finite"]
    runs = tmp_path / "run", tmp_path / "without"
    found, expected = (checkpoint_state(run)["backend"] for run in runs)
    assert found == expected
    found, expected = (metrics(run, "train/loss_scale") for run in runs)
    assert found == expected


@pytest.mark.parametrize("policy", ["skip", "reload"])
def test_budget_that_is_used_up_ends_the_run_naming_the_steps(tmp_path, policy):
    options = {"run__not_finite": policy, "run__not_finite_budget": 1}
    with pytest.raises(TrainingError, match=r"not_finite_budget allows \(1\).*: 3, ") as error:
        train(tmp_path / "run", data=poisoned(3, 9), **options)
    assert "loss is not finite" in str(error.value)
    assert state(tmp_path / "run")["step"] == 5
    # The steps of earlier starts count: they are in the checkpoint.
    with pytest.raises(TrainingError, match=r"allows \(1\)"):
        train(tmp_path / "run", data=poisoned(3, 9), **options)
    train(tmp_path / "run", data=poisoned(3, 9), **options | {"run__not_finite_budget": 2})


def test_stopping_names_the_way_out(tmp_path):
    with pytest.raises(TrainingError, match=r"or set run\.not_finite to skip or reload"):
        train(tmp_path / "run", data=poisoned(3))
    train_until_crash(tmp_path / "other", 6)
    assert state(tmp_path / "other")["step"] == 5
