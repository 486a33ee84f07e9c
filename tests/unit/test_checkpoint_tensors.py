"""Weights and Adam state by name, and what may differ at a resume."""

import pytest
import torch
from helpers.toy import ToyTask
from torch import nn

from trainer.checkpoint.resume import MAY_CHANGE, check_same_run
from trainer.checkpoint.tensors import load_model, persistent_buffers, write_tensors
from trainer.config.load import known_keys, to_dict
from trainer.config.schema import RunConfig, TrainConfig
from trainer.errors import CheckpointError


def stored(task):
    model = {name: p.detach().clone() for name, p in task.named_parameters()}
    return model | persistent_buffers(task)


def test_only_persistent_buffers_count():
    assert set(persistent_buffers(ToyTask())) == {"model.scale"}


def test_weights_round_trip_to_the_bit(tmp_path):
    torch.manual_seed(1)
    first, second = ToyTask(), ToyTask()
    first.model.scale.fill_(2.5)
    write_tensors(tmp_path, stored(first), {})
    load_model(tmp_path, second)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path):
    def tied():
        module = nn.Module()
        module.a, module.b = nn.Linear(3, 3), nn.Linear(3, 3)
        module.b.weight = module.a.weight
        return module

    first, second = tied(), tied()
    write_tensors(tmp_path, stored(first), {})
    load_model(tmp_path, second)
    assert second.a.weight is second.b.weight
    assert torch.equal(second.b.weight, first.a.weight)


def test_other_model_is_refused(tmp_path):
    task = ToyTask()
    tensors = stored(task)
    tensors["model.user.pad_doc"] = torch.zeros(3)
    write_tensors(tmp_path, tensors, {})
    with pytest.raises(CheckpointError, match=r"pad_doc has shape \(3,\)"):
        load_model(tmp_path, task)
    del tensors["model.user.pad_doc"]
    tensors["stranger"] = torch.zeros(3)
    write_tensors(tmp_path, tensors, {})
    with pytest.raises(CheckpointError, match=r"pad_doc.*stranger"):
        load_model(tmp_path, task)


def test_settings_that_may_change_exist():
    assert set(known_keys()) >= MAY_CHANGE


def test_what_may_change_and_what_may_not():
    before = to_dict(TrainConfig(task="finetune", run=RunConfig(max_steps=5)))
    longer = to_dict(TrainConfig(task="finetune", run=RunConfig(max_steps=9, micro_batch=8)))
    check_same_run(before, longer, "data", "data")
    other = to_dict(TrainConfig(task="finetune", run=RunConfig(seed=1, global_batch=64)))
    with pytest.raises(CheckpointError, match=r"run\.global_batch was 32 and is now 64; run\.seed"):
        check_same_run(before, other, "data", "data")
    with pytest.raises(CheckpointError, match="other data"):
        check_same_run(before, before, "data", "others")
