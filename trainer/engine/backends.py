"""Two backends that step and give access to whole parameters: torch (plain, DDP) and DeepSpeed.

The training loop and the checkpoints use only :class:`Backend`. Gradients are means over the global
batch: the loss of a micro-batch is a mean over its samples and is divided by the number of
micro-batches, and the gradients are averaged over the ranks.

fp16 works the same way in both backends: the loss is multiplied by one
:class:`~trainer.engine.loss_scale.LossScale`, the gradients are divided by it before clipping, and
a gradient that is not finite is dropped. DeepSpeed's own fp16 would keep half the weights and
gradients in fp16.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config.schema import OptimizerConfig
from trainer.engine.distributed import Distributed
from trainer.engine.loss_scale import LossScale
from trainer.engine.optimizer import fresh_adam_state
from trainer.engine.step_module import StepModule


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step; the same on every rank."""

    grad_norm: float
    """Norm of the whole gradient before clipping."""
    is_applied: bool
    """Whether the weights were updated; false if the gradient was not finite."""
    loss_scale: float | None = None
    """fp16: factor by which the loss was multiplied. If such a step is not applied, this is not a
    fault: the scale was too large and has been halved. None in other precisions, and if fp16
    overflowed at the lowest scale: such a step is a fault."""


class Backend(ABC):
    """One wrapped task with its optimizer.

    Attributes:
        module: The module that the loop calls.
    """

    _optimizer: torch.optim.Adam

    def __init__(self, step_module: StepModule, config: OptimizerConfig) -> None:
        self.module: nn.Module = step_module
        self._step_module = step_module
        self._config = config
        self._trainable = [p for p in step_module.parameters() if p.requires_grad]
        self._scale = LossScale(is_enabled=step_module.precision == "fp16")
        self._updates = 0

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run the backward pass of one micro-batch; the last one averages gradients over ranks."""

    def step(self) -> StepResult:
        """Clip the gradients, update the weights and drop the gradients.

        If the gradient is not finite, weights and optimizer state stay unchanged, in every mode.
        """
        used, can_fall = self._scale.value, self._scale.can_fall
        norm = self._update()
        is_applied = math.isfinite(norm)
        self._updates += is_applied
        self._scale.update(norm)
        is_scaled = self._scale.is_enabled and (is_applied or can_fall)
        return StepResult(norm, is_applied=is_applied, loss_scale=used if is_scaled else None)

    @abstractmethod
    def _update(self) -> float:
        """Update the weights by a finite gradient, drop the gradient, return its norm."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON: the number of updates, the loss scale."""
        return {"updates": self._updates, **self._scale.state()}

    def load_state(self, state: dict[str, Any], steps: int) -> None:
        """Restore the optimizer's state with zero moments; called once, before training.

        Args:
            state: The value that :meth:`state` returned; empty at the start of a run.
            steps: Steps of the run so far; used as the number of updates if ``state`` lacks it.
        """
        self._updates = int(state.get("updates", steps))
        self._scale.load_state(state)
        self.create_moments(self._updates)

    def rewind(self, state: dict[str, Any], steps: int) -> None:
        """Restore everything except tensors during training; see :meth:`load_state`.

        Moments are not created again, because ZeRO ties parameters to them only once.
        """
        self._updates = int(state.get("updates", steps))
        self._scale.load_state(state)
        for moments in self._optimizer.state.values():
            moments["step"].fill_(float(self._updates))

    @contextlib.contextmanager
    def micro_step(self, *, is_last: bool) -> Iterator[None]:
        """Surround the forward and backward pass of one micro-batch."""
        yield

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the task's parameters by name, each once; they may be sharded."""
        return dict(self._step_module.task.named_parameters())

    def full_parameter(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return the whole parameter on every rank; all ranks call this in the same order."""
        return parameter.detach()

    def _finish_gradients(self) -> float:
        """Divide gradients by the loss scale and clip them; return the norm before clipping.

        A gradient that is not finite stays unchanged.
        """
        for parameter in self._trainable:
            # ZeRO treats a missing gradient as zero, so Adam's moments decay; torch would skip the
            # parameter.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._trainable if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) / self._scale.value
        if not math.isfinite(norm):
            return float(norm)
        if self._scale.is_enabled:
            for gradient in gradients:
                gradient.div_(self._scale.value)
        if self._config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._trainable, self._config.max_grad_norm, norm)
        return float(norm)

    @abstractmethod
    def full_moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        """Return one of Adam's tensors for a whole trainable parameter; called by all ranks."""

    @abstractmethod
    def create_moments(self, step: int) -> None:
        """Create Adam's state as after ``step`` updates, with zero moments."""

    @abstractmethod
    def set_moment(self, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
        """Set one of Adam's tensors from the whole tensor; each rank keeps its part."""

    def set_parameter(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set a trainable parameter to a whole value, the same on every rank."""
        parameter.data.copy_(value)


class TorchBackend(Backend):
    """Backend for one process, or for DDP through Accelerate."""

    def __init__(
        self,
        step_module: StepModule,
        optimizer: torch.optim.Adam,
        distributed: Distributed,
        config: OptimizerConfig,
    ) -> None:
        super().__init__(step_module, config)
        self._accelerator = distributed.accelerator
        self._optimizer = optimizer
        self.module = self._accelerator.prepare(step_module)

    @contextlib.contextmanager
    def micro_step(self, *, is_last: bool) -> Iterator[None]:
        """Skip gradient communication except in the last micro-batch."""
        if is_last:
            yield
        else:
            with self._accelerator.no_sync(self.module):
                yield

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run the backward pass; Accelerate divides by the number of micro-batches."""
        self._accelerator.backward(loss * self._scale.value)

    def _update(self) -> float:
        norm = self._finish_gradients()
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def full_moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        """See :meth:`Backend.full_moment`."""
        return self._optimizer.state[parameter][moment]

    def create_moments(self, step: int) -> None:
        """See :meth:`Backend.create_moments`."""
        for parameter in self._trainable:
            self._optimizer.state[parameter] = fresh_adam_state(
                parameter.detach(), self._config, step
            )

    def set_moment(self, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
        """See :meth:`Backend.set_moment`."""
        self._optimizer.state[parameter][moment].copy_(value)


class DeepSpeedBackend(Backend):
    """Backend for a DeepSpeed engine of any ZeRO stage, in fp32, with torch's Adam inside."""

    def __init__(
        self,
        step_module: StepModule,
        optimizer: torch.optim.Adam,
        distributed: Distributed,
        config: OptimizerConfig,
    ) -> None:
        super().__init__(step_module, config)
        self._optimizer = optimizer
        self._stage = distributed.zero_stage
        self.module, _ = distributed.accelerator.prepare(step_module, optimizer)
        self._engine: Any = self.module

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run the backward pass; DeepSpeed divides by the micro-batches, ZeRO scales the loss."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=is_last)
        if self._stage == 0:
            loss = loss * self._scale.value
        elif self._scale.is_enabled:
            self._engine.optimizer.override_loss_scale(self._scale.value)
        self._engine.backward(loss)

    def _update(self) -> float:
        """Update the weights; ZeRO divides, clips and drops gradients that are not finite."""
        if self._stage != 0:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        norm = self._finish_gradients()
        if math.isfinite(norm):
            self._engine.step()
        else:
            self._engine.zero_grad()
        return norm

    def full_parameter(self, parameter: nn.Parameter) -> torch.Tensor:
        """See :meth:`Backend.full_parameter`."""
        if self._stage != 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def full_moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        """See :meth:`Backend.full_moment`."""
        if self._stage == 0:
            return self._optimizer.state[parameter][moment]
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, moment)

    def create_moments(self, step: int) -> None:
        """See :meth:`Backend.create_moments`; ZeRO keeps moments for flat shards of parameters."""
        if self._stage == 0:
            holders = self._trainable
        elif self._stage == 3:
            holders = self._engine.optimizer.fp32_partitioned_groups_flat
        else:
            holders = self._engine.optimizer.single_partition_of_fp32_groups
        for holder in holders:
            self._optimizer.state[holder] = fresh_adam_state(holder.detach(), self._config, step)
        if self._stage in (1, 2):
            # DeepSpeed ties parameters to their slices of the state once, after the first step of
            # its first group, when the other groups do not have a state yet: tie all parameters
            # here instead.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def set_moment(self, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
        """See :meth:`Backend.set_moment`."""
        if self._stage == 0:
            self._optimizer.state[parameter][moment].copy_(value)
        elif self._stage == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            safe_set_local_optimizer_state(parameter, self._shard_of(parameter, value), moment)
        else:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)

    def set_parameter(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """See :meth:`Backend.set_parameter`; ZeRO updates its own copy, so both are set."""
        if self._stage == 0:
            parameter.data.copy_(value)
        elif self._stage == 3:
            import deepspeed
            from deepspeed.utils import safe_set_local_fp32_param

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            safe_set_local_fp32_param(parameter, self._shard_of(parameter, value))
        else:
            from deepspeed.utils import safe_set_full_fp32_param

            parameter.data.copy_(value)
            safe_set_full_fp32_param(parameter, value.to(parameter.device))

    def _shard_of(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """Return this rank's slice, padded like ZeRO-3's; DeepSpeed's setter needs whole slices."""
        size = parameter.ds_tensor.numel()
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        flat = value.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(flat, (0, size - flat.numel())).to(parameter.ds_tensor.device)


def build_backend(
    step_module: StepModule,
    optimizer: torch.optim.Adam,
    distributed: Distributed,
    config: OptimizerConfig,
) -> Backend:
    """Wrap a task, with its weights already loaded, for the run's kind of training."""
    kind = TorchBackend if distributed.deepspeed is None else DeepSpeedBackend
    return kind(step_module, optimizer, distributed, config)
