"""State of a run while it trains: the wrapped task, its optimizer, the place reached."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.order import Position
from trainer.checkpoint.store import Checkpoint
from trainer.checkpoint.tensors import (
    gather_tensors,
    load_model,
    load_optimizer,
    restore_model,
)
from trainer.config.flat import to_dict
from trainer.config.schema import TrainConfig
from trainer.engine.backends import build_backend
from trainer.engine.distributed import Distributed
from trainer.engine.full_model import FullModel
from trainer.engine.optimizer import LearningRate, build_optimizer, moments_of
from trainer.engine.run_folder import versions
from trainer.engine.step_module import RNG_RULE, StepModule
from trainer.models.execution import prepare_layers

Tensors = dict[str, torch.Tensor]


class Session:
    """A task made ready to train from the start or from a checkpoint.

    Args:
        config: The run.
        task: The task, not yet wrapped and the same on every rank.
        distributed: The current process among the others.
        checkpoint: Checkpoint to continue from; None at the start.
        steps: Steps of the whole run.

    Attributes:
        config: The run.
        distributed: The current process among the others.
        step: Number of optimizer steps taken.
        position: Place in the data after these steps; None at the start.
        is_checked: Whether all trainable parameters are known to take part in the loss.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: nn.Module,
        distributed: Distributed,
        checkpoint: Checkpoint | None,
        steps: int,
    ) -> None:
        self.config = config
        self._task = task
        self.distributed = distributed
        self._moments = moments_of(config.optimizer)
        self.step = 0
        self.position: Position | None = None
        self.is_checked = False
        # Load weights before wrapping: ZeRO shards what it finds in the module.
        if checkpoint is not None:
            self._take_place(checkpoint)
            load_model(checkpoint.folder, task)
        task.train()
        model: Any = task.model
        self._full_model = FullModel(
            model,
            is_sharded=distributed.zero_stage == 3,
            is_wanted=distributed.is_main or config.validates is not None,
        )
        run = config.run
        prepare_layers(task, compiled=run.compile, checkpointed=run.activation_checkpointing)
        optimizer = build_optimizer(task, config.optimizer)
        self.learning_rate = LearningRate(optimizer, config.optimizer, steps)
        self.step_module = StepModule(task, config.run.precision, distributed.device.type)
        self.backend = build_backend(self.step_module, optimizer, distributed, config.optimizer)
        kept = {} if checkpoint is None else checkpoint.state.get("backend", {})
        self.backend.load_state(kept, self.step)
        if checkpoint is not None:
            load_optimizer(checkpoint.folder, self.backend, self._moments)

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Roll back to a checkpoint of this run, without a restart; called by all ranks."""
        self._take_place(checkpoint)
        restore_model(checkpoint.folder, self.backend, self._task)
        self.backend.rewind(checkpoint.state.get("backend", {}), self.step)
        load_optimizer(checkpoint.folder, self.backend, self._moments)

    def take_weights(self, checkpoint: Checkpoint) -> None:
        """Load another step's weights for export; called by all ranks.

        Training cannot continue afterwards.
        """
        restore_model(checkpoint.folder, self.backend, self._task)

    def _take_place(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        reached = checkpoint.state["position"]
        self.position = None if reached is None else Position.from_dict(reached)

    def tensors(self, *, to_own: bool = True) -> tuple[Tensors, Tensors]:
        """Return the whole model and optimizer on rank 0; called by all ranks.

        Args:
            to_own: Whether the tensors must stay unchanged while training continues.
        """
        is_main = self.distributed.is_main
        return gather_tensors(
            self.backend, self._task, self._moments, is_main=is_main, to_own=to_own
        )

    def full_model(self) -> nn.Module:
        """Return the task's model with whole weights on rank 0; called by all ranks.

        If the run validates, every rank gets the whole model. Training mode and device are the
        task's; under ZeRO-3 the model is a copy on the CPU.
        """
        return self._full_model.gather(self.backend)

    def state(self, data: str) -> dict[str, Any]:
        """Return the content of a checkpoint's ``state.json`` except the step.

        Args:
            data: Fingerprint of the task's data.
        """
        return {
            "position": None if self.position is None else self.position.to_dict(),
            "data": data,
            "config": to_dict(self.config),
            "ranks": self.distributed.world_size,
            "zero_stage": self.distributed.zero_stage,
            "backend": self.backend.state(),
            "rng": RNG_RULE,
            "versions": versions(),
        }

    def info(self, run: Path, steps: int) -> dict[str, Any]:
        """Return what an export records about its origin."""
        return {
            "task": self.config.task,
            "run": run.name,
            "seed": self.config.run.seed,
            "step": self.step,
            "steps": steps,
        }
