"""Parameter groups, Adam's kind, and the learning rate in the groups."""

import pytest
import torch
from helpers.toy import ToyTask

from trainer.config.schema import OptimizerConfig
from trainer.engine.optimizer import LearningRate, build_optimizer, fresh_adam_state, moments_of
from trainer.errors import ConfigError


def test_groups_have_their_own_rates_and_only_trainable_parameters():
    task = ToyTask()
    optimizer = build_optimizer(task, OptimizerConfig(lr=0.1, backbone_lr=0.01))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in task.parameters() if p.requires_grad}


def test_weight_decay_is_decoupled():
    plain = build_optimizer(ToyTask(), OptimizerConfig())
    decayed = build_optimizer(ToyTask(), OptimizerConfig(weight_decay=0.1))
    assert type(plain) is torch.optim.Adam
    assert type(decayed) is torch.optim.AdamW


def test_a_group_of_nothing_is_left_out():
    task = ToyTask()
    task.model.encoder.requires_grad_(False)
    (group,) = build_optimizer(task, OptimizerConfig(lr=0.1)).param_groups
    assert group["name"] == "rest"


def test_nothing_trainable_is_refused():
    task = ToyTask().requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        build_optimizer(task, OptimizerConfig())


@pytest.mark.parametrize("wrong", ["missed", "twice", "frozen"])
def test_wrong_groups_are_refused(wrong):
    task = ToyTask()
    trainable = [p for p in task.parameters() if p.requires_grad]
    frozen = [p for p in task.parameters() if not p.requires_grad]
    groups = {
        "missed": [{"params": trainable[1:]}],
        "twice": [{"params": trainable}, {"params": trainable[:1]}],
        "frozen": [{"params": trainable + frozen[:1]}],
    }
    task.parameter_groups = lambda config: groups[wrong]
    with pytest.raises(ConfigError, match="group"):
        build_optimizer(task, OptimizerConfig())


def test_learning_rates_are_set_per_group_and_named():
    config = OptimizerConfig(lr=0.1, backbone_lr=0.01, schedule="linear")
    optimizer = build_optimizer(ToyTask(), config)
    rate = LearningRate(optimizer, config, steps=4)
    assert rate.set(3) == pytest.approx({"lr_backbone": 0.005, "lr": 0.05})
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05])
    # A pure function of the step: going back gives the first rate again.
    assert rate.set(1) == pytest.approx({"lr_backbone": 0.01, "lr": 0.1})
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_fresh_state_is_what_adam_itself_would_hold(amsgrad):
    config = OptimizerConfig(lr=0.0, amsgrad=amsgrad)
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.0, amsgrad=amsgrad)
    parameter.grad = torch.zeros(3)
    for _ in range(5):
        optimizer.step()
    own, theirs = fresh_adam_state(parameter, config, 5), optimizer.state[parameter]
    assert own.keys() == theirs.keys()
    assert set(moments_of(config)) == own.keys() - {"step"}
    for name, value in own.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name])
