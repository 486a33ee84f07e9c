"""What exists while a run trains: the wrapped task, its optimizer, and the place reached."""

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
        task: Not yet wrapped, the same on every rank.
        distributed: This process among the others.
        checkpoint: Where to go on, None at the start.
        steps: Steps of the whole run.

    Attributes:
        config: The run.
        distributed: This process among the others.
        step: Optimizer steps taken.
        position: Place in the data after them; None at the start.
        is_checked: Whether it was seen that every trainable parameter takes part in the loss.
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
        # Weights come before wrapping: ZeRO cuts up what it finds in the module.
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
        """Become again what a checkpoint of this run holds, without a new start; called by all
        ranks.
        """
        self._take_place(checkpoint)
        restore_model(checkpoint.folder, self.backend, self._task)
        self.backend.rewind(checkpoint.state.get("backend", {}), self.step)
        load_optimizer(checkpoint.folder, self.backend, self._moments)

    def take_weights(self, checkpoint: Checkpoint) -> None:
        """Have the weights of another step, and be nothing but them from now on: for an export at
        the end of training. Called by all ranks.
        """
        restore_model(checkpoint.folder, self.backend, self._task)

    def _take_place(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        reached = checkpoint.state["position"]
        self.position = None if reached is None else Position.from_dict(reached)

    def tensors(self, *, to_own: bool = True) -> tuple[Tensors, Tensors]:
        """The whole model and optimizer on rank 0; called by all ranks.

        Args:
            to_own: Whether they must stay as they are while training goes on.
        """
        is_main = self.distributed.is_main
        return gather_tensors(
            self.backend, self._task, self._moments, is_main=is_main, to_own=to_own
        )

    def full_model(self) -> nn.Module:
        """The task's model with whole weights, on rank 0; called by all ranks.

        On every rank where the run validates. The training mode and the device are the task's, but
        of ZeRO-3 it is a copy on the CPU.
        """
        return self._full_model.gather(self.backend)

    def state(self, data: str) -> dict[str, Any]:
        """What ``state.json`` of a checkpoint says, besides the step.

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
        """What an export says about where it comes from."""
        return {
            "task": self.config.task,
            "run": run.name,
            "seed": self.config.run.seed,
            "step": self.step,
            "steps": steps,
        }
