"""Sums what the micro-batches of a step report, and reduces it over ranks when it is logged."""

import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from trainer.engine.distributed import Distributed


class StepReport:
    """Losses and reports of one step on this rank, as sums over its micro-batches."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, outputs: Mapping[str, Any], padding: float | None) -> None:
        """Add the output of one micro-batch; nothing is copied off the device here.

        Args:
            outputs: What the task's forward returned.
            padding: Share of padding in the micro-batch, if the data say.
        """
        values: dict[str, Any] = {"train/loss": outputs["loss"]}
        values |= {f"train/loss_{name}": value for name, value in outputs["losses"].items()}
        for name, value in outputs["report"].items():
            values[name if "/" in name else f"train/{name}"] = value
        if padding is not None:
            values["train/padding"] = padding
        device = outputs["loss"].device
        row = torch.stack([_scalar(value, device) for value in values.values()])
        self._names = list(values)
        self._sums = row if self._sums is None else self._sums + row
        self._count += 1

    @property
    def loss(self) -> float:
        """Mean loss over this rank's micro-batches."""
        return float("nan") if self._sums is None else float(self._sums[0]) / self._count

    def over_ranks(self, distributed: Distributed, extra: dict[str, float]) -> dict[str, float]:
        """Means over the global batch by name, with further numbers of this rank averaged along."""
        if self._sums is None:
            return {}
        here = [float(value) / self._count for value in self._sums] + list(extra.values())
        means = distributed.mean(here)
        named = dict(zip([*self._names, *extra], means, strict=True))
        if "train/padding" in named:
            named["speed/padding_pct"] = 100.0 * named.pop("train/padding")
        return named


class Stopwatch:
    """Time between log lines, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._since = time.monotonic()
        self._steps = 0

    def count(self, waited_s: float) -> None:
        """Count one step, of which so much was waiting."""
        self.waited_s += waited_s
        self._steps += 1

    def read(self, global_batch: int) -> dict[str, float]:
        """Samples a second over all ranks and this rank's share of waiting since the last call."""
        elapsed = max(1e-9, time.monotonic() - self._since)
        rates = {
            "speed/samples_per_s": self._steps * global_batch / elapsed,
            "speed/data_wait_pct": 100.0 * min(1.0, self.waited_s / elapsed),
        }
        self.waited_s, self._steps, self._since = 0.0, 0, time.monotonic()
        return rates


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far in MiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _scalar(value: Any, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(value).detach().to(device, torch.float64).reshape(())
