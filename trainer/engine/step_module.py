"""The task as the engine calls it: precision, random numbers, and unused parameters."""

import hashlib
from typing import Any

import torch
from torch import nn

from trainer.batch import Batch
from trainer.errors import TrainingError

OUTPUTS = ("loss", "losses", "report", "num_samples")
"""Keys of the task's forward output."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Data type of each autocast precision; fp32 does not use autocast."""


class StepModule(nn.Module):
    """Wrapper that gives a task the same precision under torch, DDP and DeepSpeed.

    Autocast is inside the forward pass, because DeepSpeed turns off an autocast around its engine.
    Weights, gradients and optimizer stay fp32 everywhere.
    """

    PREFIX = "task."

    def __init__(self, task: nn.Module, precision: str, device_type: str) -> None:
        super().__init__()
        self.task = task
        self.precision = precision
        self._device_type = device_type

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Run the task on one micro-batch; the loss is returned in fp32.

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
    """Return the random seed (dropout) of one micro-batch on one rank, below 2^63.

    The seed is a pure function of the place in the run, so a checkpoint needs no generator states,
    and a resumed run draws the same numbers as an uninterrupted one.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}/{micro}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


RNG_RULE = "torch.manual_seed(blake2b-64('seed/step/rank/micro') >> 1) before every forward"
"""Rule of the seeds, named in checkpoints."""


def parameters_left_out(loss: torch.Tensor, module: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that a loss does not depend on.

    With such a parameter, the ranks of DDP and ZeRO would wait for different gradients, so it is
    found in the graph of the first step, before any gradient is communicated.
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
        TrainingError: A parameter is left out; names some of them and the remedies.
    """
    left_out = [name.removeprefix(StepModule.PREFIX) for name in parameters_left_out(loss, module)]
    if left_out:
        raise TrainingError(
            f"{len(left_out)} trainable parameters take no part in the loss: "
            f"{', '.join(left_out[:8])}; freeze them (requires_grad False), remove them from the "
            "task, or let them take part in every forward pass (torch.where instead of if)"
        )
