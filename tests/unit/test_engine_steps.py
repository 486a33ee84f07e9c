"""Parts of a step that no loss curve shows: Adam's kind, dropout's seeds, the clipped norm."""

import math

import pytest
import torch
from helpers.inprocess import save_export
from helpers.launch import settings
from helpers.toy import ToyData, ToyTask
from torch import nn

from shards.stream import Stream
from trainer.config.schema import OptimizerConfig, RunConfig, TrainConfig
from trainer.config.validate import check_batch
from trainer.engine.distributed import start
from trainer.engine.optimizer import build_optimizer
from trainer.engine.session import Session
from trainer.engine.step_module import seed_of
from trainer.engine.trainer import Trainer
from trainer.errors import ConfigError
from trainer.recipes.load import from_settings
from trainer.tasks.post_train.task import PostTrainConfig, PostTrainDataConfig


class One(nn.Module):
    """A single weight in a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

    def parameter_groups(self, config: OptimizerConfig):
        return [{"params": [self.weight], "lr": config.lr}]


GRADIENTS = (1.0, 0.01, -0.02, 0.01, 3.0, 0.001)


def slow_adam(config: OptimizerConfig) -> float:
    """Adam with decoupled decay (Loshchilov and Hutter) and AMSGrad (Reddi et al.), by hand."""
    weight, first, second, highest = 1.0, 0.0, 0.0, 0.0
    beta1, beta2 = config.betas
    for step, gradient in enumerate(GRADIENTS, 1):
        weight *= 1 - config.lr * config.weight_decay
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        highest = max(highest, second)
        used = highest if config.amsgrad else second
        scale = math.sqrt(used / (1 - beta2**step)) + config.eps
        weight -= config.lr * first / (1 - beta1**step) / scale
    return weight


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_those_of_the_adam_that_is_asked_for(amsgrad, weight_decay) -> None:
    config = OptimizerConfig(
        lr=0.1, betas=(0.8, 0.7), eps=1e-3, weight_decay=weight_decay, amsgrad=amsgrad
    )
    task = One()
    optimizer = build_optimizer(task, config)
    for gradient in GRADIENTS:
        task.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    assert task.weight.item() == pytest.approx(slow_adam(config), rel=1e-9)


def test_the_kinds_of_adam_differ_on_these_gradients() -> None:
    """Otherwise the test above would say nothing."""
    found = {
        slow_adam(OptimizerConfig(lr=0.1, betas=(0.8, 0.7), eps=1e-3, weight_decay=w, amsgrad=a))
        for w in (0.0, 0.3)
        for a in (False, True)
    }
    assert len(found) == 4


@pytest.mark.parametrize("rank", [0, 5])
def test_dropout_is_seeded_by_seed_step_rank_and_micro_batch(tmp_path, rank) -> None:
    seen: list[int] = []

    class Watched(ToyTask):
        def forward(self, batch):
            seen.append(torch.initial_seed())
            return super().forward(batch)

    class OnRank(Trainer):
        def _forward_backward(self, *arguments):
            self.distributed.rank = rank
            try:
                return super()._forward_backward(*arguments)
            finally:
                self.distributed.rank = 0

    changes = {"run__seed": 11, "run__max_steps": 2, "run__micro_batch": 2}
    config = from_settings(settings(tmp_path / "run", **changes), where="test")
    with start(config) as distributed:
        OnRank(config, Watched(), ToyData(seed=11), save_export, distributed).fit()
    wanted = [seed_of(11, step, rank, micro) for step in (1, 2) for micro in range(4)]
    assert seen == wanted
    assert len(set(wanted)) == 8


def finished(tmp_path, precision: str, scale: float, limit: float | None):
    """Norm that is returned and the gradients of the first step as Adam would get them."""
    config = from_settings(
        settings(
            tmp_path / "run", run__precision=precision, run__micro_batch=8,
            **({} if limit is None else {"optimizer__max_grad_norm": limit}),
        ),
        where="test",
    )  # fmt: skip
    with start(config) as distributed:
        session = Session(config, ToyTask(), distributed, None, 1)
        backend = session.backend
        if precision == "fp16":
            backend._scale.value = scale
        batch = ToyData().collate(next(Stream(ToyData().order, 8, 0, 1, None))).batch
        backend.backward(backend.module(batch)["loss"], is_last=True)
        norm = backend._finish_gradients()
        gradients = [p.grad.clone() for p in session.step_module.parameters() if p.requires_grad]
    return norm, torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("limit", [None, 0.05, 1e3])
def test_a_gradient_is_clipped_by_its_norm_without_the_loss_scale(tmp_path, scale, limit) -> None:
    exact, plain = finished(tmp_path, "fp32", 1.0, None)
    norm, gradient = finished(tmp_path, "fp16", scale, limit)
    assert norm == pytest.approx(exact, rel=0.02)
    wanted = exact if limit is None or limit > exact else limit
    assert exact > 0.05
    assert gradient.norm().item() == pytest.approx(wanted, rel=0.02)
    direction = nn.functional.cosine_similarity(gradient, plain, dim=0)
    assert direction.item() == pytest.approx(1.0, abs=1e-3)


def test_the_loss_scale_that_is_told_is_the_one_that_was_used(tmp_path) -> None:
    """An overflow halves it after the step."""
    config = from_settings(settings(tmp_path / "run", run__precision="fp16"), where="test")
    with start(config) as distributed:
        task = ToyTask()
        backend = Session(config, task, distributed, None, 1).backend
        told = []
        for factor in (1.0, float("inf"), 1.0):
            loss = sum(p.sum() for p in task.parameters() if p.requires_grad) * factor
            backend.backward(loss, is_last=True)
            result = backend.step()
            told.append((result.is_applied, result.loss_scale, backend._scale.value))
    assert told == [
        (True, 2.0**16, 2.0**16), (False, 2.0**16, 2.0**15), (True, 2.0**15, 2.0**15)
    ]  # fmt: skip


def test_a_missing_gradient_is_a_zero_and_a_frozen_parameter_keeps_nothing(tmp_path) -> None:
    """ZeRO counts a missing one as zero: Adam's moments decay, and the weight moves on."""
    config = from_settings(settings(tmp_path / "run", run__micro_batch=8), where="test")
    with start(config) as distributed:
        task = ToyTask()
        backend = Session(config, task, distributed, None, 1).backend
        weight = task.projection.weight
        seen = []
        for part in (weight, task.model.user.pad_doc):
            backend.backward(part.sum(), is_last=True)
            assert backend.step().is_applied
            moments = (backend.full_moment(weight, name) for name in ("exp_avg", "exp_avg_sq"))
            seen.append([weight.detach().clone(), *(moment.clone() for moment in moments)])
        (before, first, second), (after, *decayed) = seen
        assert (first > 0).all() and (after < before).all()
        torch.testing.assert_close(decayed, [0.9 * first, 0.999 * second])
        frozen = [p for p in task.parameters() if not p.requires_grad]
        assert len(frozen) == 2
        assert all(p.grad is None and p not in backend._optimizer.state for p in frozen)


def in_batch(micro: int, *, is_in_batch: bool = True) -> TrainConfig:
    run = RunConfig(global_batch=8, micro_batch=micro)
    return PostTrainConfig(data=PostTrainDataConfig(in_batch_negatives=is_in_batch), run=run)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 4), (1, 1), (2, 2), (4, 1)])
def test_in_batch_negatives_are_refused_with_accumulation(world_size, micro) -> None:
    wanted = rf"in_batch_negatives needs .* raise run.micro_batch to {8 // world_size}"
    with pytest.raises(ConfigError, match=wanted):
        check_batch(in_batch(micro), world_size)
    assert check_batch(in_batch(micro, is_in_batch=False), world_size) > 1


@pytest.mark.parametrize(("world_size", "micro"), [(1, 8), (2, 4), (8, 1)])
def test_in_batch_negatives_serve_without_accumulation(world_size, micro) -> None:
    assert check_batch(in_batch(micro), world_size) == 1


def test_in_batch_negatives_with_accumulation_never_start(tmp_path) -> None:
    changes = {"data__in_batch_negatives": True, "run__micro_batch": 4}
    config = from_settings(settings(tmp_path / "run", **changes), where="test")
    with pytest.raises(ConfigError, match="in_batch_negatives"), start(config):
        pass
