"""What is counted while a run trains, and how it becomes the numbers of a record.

Nothing here waits for the device or for other ranks between log lines: a step that is not logged
costs a few additions.
"""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.engine.backends import StepResult
from trainer.engine.distributed import Distributed
from trainer.monitor.flops import TextFlops
from trainer.tasks.texts import TextCounts

BINS = 40
"""Bars of a histogram; the values lie between 0 and 1."""


class StepReport:
    """Losses and reports of one step on this rank, as sums over its micro-batches.

    Args:
        is_logged: Whether the step is written down. If not, only the loss is kept.
    """

    def __init__(self, *, is_logged: bool = True) -> None:
        self._is_logged = is_logged
        self._names: list[str] = []
        self._histograms: dict[str, torch.Tensor] = {}
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, outputs: Mapping[str, Any], counts: TextCounts) -> None:
        """Add the output of one micro-batch; nothing is copied off the device here.

        Args:
            outputs: What the task's forward returned.
            counts: The texts of the micro-batch, if it has any.
        """
        self._count += 1
        values: dict[str, Any] = {"train/loss": outputs["loss"]}
        if self._is_logged:
            values |= {f"train/loss_{name}": value for name, value in outputs["losses"].items()}
            for name, value in outputs["report"].items():
                values[name if "/" in name else f"train/{name}"] = value
            if counts.slots:
                values["speed/padding_pct"] = 100.0 * counts.padding
            for name, samples in outputs.get("histograms", {}).items():
                bars = torch.histc(samples.float(), BINS, 0.0, 1.0)
                before = self._histograms.get(name)
                self._histograms[name] = bars if before is None else before + bars
        device = outputs["loss"].device
        row = torch.stack([_scalar(value, device) for value in values.values()])
        self._names = list(values)
        self._sums = row if self._sums is None else self._sums + row

    @property
    def loss(self) -> float:
        """Mean loss over this rank's micro-batches."""
        return float("nan") if self._sums is None else float(self._sums[0]) / self._count

    def over_ranks(
        self, distributed: Distributed, extra: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Means over the global batch by name, with further numbers of this rank averaged along.

        One all-reduce for all of them.

        Returns:
            The means, and for every histogram how many values of the global batch are in each of
            ``BINS`` equal bars between 0 and 1.
        """
        if self._sums is None:
            return {}, {}
        here = [float(value) / self._count for value in self._sums] + list(extra.values())
        bars = [float(count) for counts in self._histograms.values() for count in counts]
        means = distributed.mean(here + bars)
        named = dict(zip([*self._names, *extra], means[: len(here)], strict=True))
        bars = [bar * distributed.world_size for bar in means[len(here) :]]
        histograms = {
            name: bars[place * BINS : (place + 1) * BINS]
            for place, name in enumerate(self._histograms)
        }
        return named, histograms


class Meter:
    """Counts between log lines: time, waiting, tokens, computation, steps left out.

    Args:
        flops: What a text costs; None where the model is of a kind that is not counted.
        peak_tflops: Peak of one device, None where it is not known.
        world_size: Number of ranks.
    """

    def __init__(self, flops: TextFlops | None, peak_tflops: float | None, world_size: int) -> None:
        self._flops = flops
        self._peak_tflops = peak_tflops
        self._world_size = world_size
        self.restart()

    def restart(self) -> None:
        """Begin a new count now."""
        self._since = time.monotonic()
        self._waited_s = 0.0
        self._steps = 0
        self._overflows = 0
        self._texts = np.zeros(3)

    def waited(self, seconds: float) -> None:
        """Count a wait for data."""
        self._waited_s += seconds

    def count_texts(self, counts: TextCounts) -> None:
        """Count the texts of a micro-batch."""
        self._texts += (counts.texts, counts.tokens, counts.tokens_squared)

    def count_step(self, result: StepResult) -> None:
        """Count an optimizer step."""
        self._steps += 1
        self._overflows += not result.is_applied and result.loss_scale is not None

    def read(self, global_batch: int) -> dict[str, float]:
        """The rates since the last call, and begin a new count.

        Their mean over ranks is the run's: throughputs are those of all ranks together, waiting
        and computation those of one. Time is wall time, checkpoints and exports included.
        """
        elapsed = max(1e-9, time.monotonic() - self._since)
        rates = {
            "speed/samples_per_s": self._steps * global_batch / elapsed,
            "speed/step_s": elapsed / max(1, self._steps),
            "speed/data_wait_pct": 100.0 * min(1.0, self._waited_s / elapsed),
        }
        if self._overflows:
            rates["train/overflowed_steps"] = float(self._overflows)
        if self._texts[1]:
            rates["speed/tokens_per_s"] = self._world_size * float(self._texts[1]) / elapsed
            if self._flops is not None:
                tflops = self._flops.of(*self._texts) / elapsed / 1e12
                rates["speed/model_tflops"] = tflops
                if self._peak_tflops is not None:
                    rates["speed/mfu_pct"] = 100.0 * tflops / self._peak_tflops
        self.restart()
        return rates


def memory_mib(device: torch.device) -> dict[str, float]:
    """Memory of this rank in MiB: its highest so far and what it is now.

    ``memory`` is the device's: torch's allocations on a GPU, else this process. With a GPU the
    process's own is ``process_memory``.
    """
    process = [process_peak_mib(), process_memory_mib()]
    if device.type != "cuda":
        return dict(zip(("speed/memory_mib", "speed/memory_now_mib"), process, strict=True))
    return {
        "speed/memory_mib": torch.cuda.max_memory_allocated(device) / 2**20,
        "speed/memory_now_mib": torch.cuda.memory_allocated(device) / 2**20,
        "speed/process_memory_mib": process[0],
        "speed/process_memory_now_mib": process[1],
    }


def process_peak_mib() -> float:
    """Highest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def process_memory_mib() -> float:
    """Resident memory of this process in MiB; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return process_peak_mib()
    return pages * resource.getpagesize() / 2**20


def highest(distributed: Distributed, values: Mapping[str, float]) -> dict[str, float]:
    """The highest of each over all ranks, to the whole number: the rank that runs out first."""
    whole: Sequence[int] = distributed.maximum([round(value) for value in values.values()])
    return {name: float(value) for name, value in zip(values, whole, strict=True)}


def _scalar(value: Any, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(value).detach().to(device, torch.float64).reshape(())
