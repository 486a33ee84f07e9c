"""The task as the engine calls it: precision, random numbers, and what takes part in a step."""

import hashlib
from typing import Any

import torch
from torch import nn

from trainer.batch import Batch
from trainer.errors import TrainingError

OUTPUTS = ("loss", "losses", "report", "num_samples")
"""Keys of what a task's forward returns."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What a precision computes in; fp32 computes as it is."""


class StepModule(nn.Module):
    """Wraps a task so that precision means the same plainly, under DDP and under DeepSpeed.

    Autocast stands inside the forward: DeepSpeed switches off one that stands around its engine.
    Weights, gradients and optimizer stay fp32 everywhere.
    """

    PREFIX = "task."

    def __init__(self, task: nn.Module, precision: str, device_type: str) -> None:
        super().__init__()
        self.task = task
        self.precision = precision
        self._device_type = device_type

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Run the task on one micro-batch; the loss comes back in fp32.

        Raises:
            TrainingError: The task's output lacks a key of the protocol.
        """
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self._device_type, dtype, enabled=dtype is not None):
            outputs = self.task(batch)
        missing = [key for key in OUTPUTS if key not in outputs]
        if missing:
            raise TrainingError(f"the task's output lacks {missing}; it has {sorted(outputs)}")
        return {**outputs, "loss": outputs["loss"].float()}


def seed_of(seed: int, step: int, rank: int, micro: int) -> int:
    """The seed of the random numbers (dropout) of one micro-batch on one rank, below 2^63.

    A pure function of the place in the run, so that a checkpoint needs no generator states and a
    resumed run draws what an uninterrupted one would have drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}/{micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


RNG_RULE = "torch.manual_seed(blake2b-64('seed/step/rank/micro') >> 1) before every forward"
"""Named in checkpoints."""


def parameters_left_out(loss: torch.Tensor, module: nn.Module) -> list[str]:
    """Names of the trainable parameters that a loss does not depend on.

    Such a parameter makes the ranks of DDP and ZeRO wait for different gradients, so it is found in
    the graph of the first step, before any of it is communicated.
    """
    reached: set[int] = set()
    seen: set[Any] = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            reached.add(id(variable))
        pending.extend(parent for parent, _ in node.next_functions)
    return [n for n, p in module.named_parameters() if p.requires_grad and id(p) not in reached]


def check_all_take_part(loss: torch.Tensor, module: nn.Module) -> None:
    """Refuse a task whose loss leaves out trainable parameters.

    Raises:
        TrainingError: Naming some of them and the remedies.
    """
    left_out = [name.removeprefix(StepModule.PREFIX) for name in parameters_left_out(loss, module)]
    if left_out:
        raise TrainingError(
            f"{len(left_out)} trainable parameters take no part in the loss: "
            f"{', '.join(left_out[:8])}; freeze them (requires_grad False), leave them out of the "
            "task, or let them take part in every forward pass (torch.where instead of if)"
        )
