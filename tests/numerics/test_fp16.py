"""fp16: close to fp32, the loss scale in checkpoints, and when an overflow is the run's fault."""

import json

import pytest
import torch
from helpers.inprocess import train, train_until_crash, weights
from helpers.launch import metrics
from helpers.world import TinyWorld, make_world

from trainer.batch import Batch
from trainer.engine import loss_scale
from trainer.engine.distributed import start
from trainer.engine.loss_scale import LossScale
from trainer.engine.session import Session
from trainer.engine.step_module import StepModule
from trainer.errors import TrainingError
from trainer.tasks.build import build

NO_DROPOUT = {"model__backbone__hidden_dropout": 0.0, "model__backbone__attention_dropout": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("fp16"))


def gradient(world: TinyWorld, task: str, precision: str, **changes) -> dict[str, torch.Tensor]:
    """The first step's gradient of a real task, from Adam's first moment."""
    config = world.config(task, run__precision=precision, **NO_DROPOUT, **changes)
    with start(config) as distributed:
        built = build(config)
        session = Session(config, built.module, distributed, None, 1)
        batch = first_batch(built, config.run.global_batch)
        session.backend.backward(session.backend.module(batch)["loss"], is_last=True)
        assert session.backend.step().is_applied
        _, optimizer = session.tensors()
    return {name: value / 0.1 for name, value in optimizer.items() if name.endswith("/exp_avg")}


def first_batch(built, size: int) -> Batch:
    from shards.stream import Stream

    return built.data.collate(next(Stream(built.data.order, size, 0, 1, None))).batch


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("post_train", {}),
        ("post_train", {"model__backbone__relative_position_bias": True}),
        ("finetune", {}),
    ],
)
def test_gradients_are_close_to_fp32_and_closer_than_bf16(world, task, changes) -> None:
    """fp16 has 11 bits of precision, bf16 has 8."""
    exact, fp16, bf16 = (gradient(world, task, p, **changes) for p in ("fp32", "fp16", "bf16"))
    whole = torch.stack([value.norm() for value in exact.values()]).norm()
    distance = {
        name: torch.stack([(found[key] - exact[key]).norm() for key in exact]).norm() / whole
        for name, found in (("fp16", fp16), ("bf16", bf16))
    }
    assert 0 < distance["fp16"] < 5e-3
    assert distance["fp16"] < distance["bf16"] / 2


def test_the_scale_keeps_gradients_above_zero_that_fp16_would_lose() -> None:
    """A gradient of 1e-9 is nothing in fp16, whose smallest number is 6e-8."""
    weight = torch.nn.Linear(8, 8, bias=False)
    batch = torch.ones(2, 8)

    class Task(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, batch):
            loss = self.weight(batch).float().mean() * 1e-8
            return {"loss": loss, "losses": {}, "report": {}, "num_samples": 2}

    module = StepModule(Task(), "fp16", "cpu")
    module(batch)["loss"].backward()
    assert not weight.weight.grad.any()
    scale = LossScale(is_enabled=True)
    (module(batch)["loss"] * scale.value).backward()
    assert weight.weight.grad / scale.value == pytest.approx(1e-8 / 8, rel=1e-2)


def test_a_resumed_run_repeats_the_scale_and_the_left_out_steps(tmp_path, monkeypatch) -> None:
    """From a scale that overflows at first, through growth, over a crash in between."""
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**24)
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 4)
    changes = {"run__precision": "fp16", "run__checkpoint_every": 5, "run__max_steps": 20}
    whole = train(tmp_path / "whole", **changes)
    train_until_crash(tmp_path / "parts", 7, **changes)
    kept = json.loads((tmp_path / "parts/checkpoints/step_00000005/state.json").read_text())
    assert kept["backend"]["updates"] < 5
    assert kept["backend"]["loss_scale"] < 2.0**24
    parts = train(tmp_path / "parts", **changes)
    assert metrics(parts) == metrics(whole)
    assert weights(parts / "export") == weights(whole / "export")
    states = [
        json.loads((run / "checkpoints/step_00000020/state.json").read_text())["backend"]
        for run in (whole, parts)
    ]
    assert states[0] == states[1]
    assert states[0]["updates"] < 20


def test_an_overflow_at_the_lowest_scale_stops_the_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**24)
    monkeypatch.setattr(loss_scale, "LOWEST", 2.0**23)
    with pytest.raises(TrainingError, match="gradient is not finite in step 2"):
        train(tmp_path / "run", run__precision="fp16")


def test_the_scale_grows_after_good_steps_only_and_stays_in_bounds(monkeypatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale = LossScale(is_enabled=True)
    values = []
    for norm in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, float("nan"), 2.0):
        scale.update(norm)
        values.append(scale.value / 2.0**16)
    assert values == [1, 1, 0.5, 0.5, 0.5, 1, 0.5, 0.5]
    again = LossScale(is_enabled=True)
    again.load_state(scale.state())
    assert again.state() == scale.state() == {"loss_scale": 2.0**15, "good_steps": 1}
    for _ in range(100):
        scale.update(float("inf"))
    assert (scale.value, scale.can_fall) == (1.0, False)
    for _ in range(200):
        scale.update(1.0)
    assert scale.value == 2.0**24


def test_other_precisions_are_not_scaled() -> None:
    scale = LossScale(is_enabled=False)
    scale.update(float("inf"))
    scale.load_state({"loss_scale": 8.0})
    assert (scale.value, scale.can_fall, scale.state()) == (1.0, False, {})
