"""Precision, random numbers and participation around a task's forward."""

import pytest
import torch
from helpers.toy import ToyBatch, ToyData, ToyTask
from torch import nn

from shards.stream import Stream
from trainer.engine.step_module import (
    StepModule,
    check_all_take_part,
    parameters_left_out,
    seed_of,
)
from trainer.errors import TrainingError


def toy_batch(size: int = 6) -> ToyBatch:
    data = ToyData()
    return data.collate(next(Stream(data.order, size, 0, 1, None))).batch


def test_seeds_differ_in_every_coordinate_and_fit_torch():
    places = [(s, t, r, m) for s in range(3) for t in range(3) for r in range(3) for m in range(3)]
    seeds = {seed_of(*place) for place in places}
    assert len(seeds) == len(places)
    for seed in seeds:
        torch.manual_seed(seed)
    assert seed_of(1, 2, 3, 4) == seed_of(1, 2, 3, 4)
    assert seed_of(1, 23, 0, 0) != seed_of(12, 3, 0, 0)


def test_bf16_computes_in_bf16_and_keeps_weights_gradients_and_loss_in_fp32():
    seen = []

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, batch):
            out = self.linear(batch["x"])
            seen.append(out.dtype)
            return {"loss": out.mean(), "losses": {}, "report": {}, "num_samples": 2}

    module = StepModule(Task(), "bf16", "cpu")
    outputs = module({"x": torch.randn(2, 4)})
    outputs["loss"].backward()
    assert seen == [torch.bfloat16]
    assert outputs["loss"].dtype == torch.float32
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


def test_fp32_is_not_autocast():
    module = StepModule(ToyTask(), "fp32", "cpu")
    plain = ToyTask()
    plain.load_state_dict(module.task.state_dict())
    batch = toy_batch()
    assert torch.equal(module(batch)["loss"], plain(batch)["loss"])


def test_output_without_a_key_is_refused():
    class Task(nn.Module):
        def forward(self, batch):
            return {"loss": torch.zeros(()), "num_samples": 1}

    with pytest.raises(TrainingError, match=r"losses.*report"):
        StepModule(Task(), "fp32", "cpu")({})


def test_all_parameters_of_the_toy_take_part():
    module = StepModule(ToyTask(), "fp32", "cpu")
    assert parameters_left_out(module(toy_batch())["loss"], module) == []


def test_a_parameter_that_takes_no_part_is_named():
    task = ToyTask()
    task.unused = nn.Linear(2, 2)
    module = StepModule(task, "fp32", "cpu")
    loss = module(toy_batch())["loss"]
    with pytest.raises(TrainingError, match=r"2 trainable .*: unused\.weight, unused\.bias"):
        check_all_take_part(loss, module)
    task.unused.requires_grad_(False)
    check_all_take_part(loss, module)
