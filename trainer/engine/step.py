"""One optimizer step on this rank: its losses, reports and flags.

Between log lines, nothing here waits for the device or for other ranks: a step that is not logged
costs a few additions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from shards.order import Position
from trainer.engine.backends import StepResult
from trainer.engine.distributed import Distributed
from trainer.tasks.texts import TextCounts

BINS = 40
"""Number of bars of a histogram; the values lie between 0 and 1."""


class Step:
    """One optimizer step on this rank: losses and reports as sums over its micro-batches.

    Args:
        number: The step, from 1.
        is_logged: Whether its metrics are logged; if not, only the loss is kept. Callbacks set this
            before the step.

    Attributes:
        is_saved: Whether a checkpoint follows. Callbacks set this after the step.
        waited_s: Seconds of waiting for data.
        position: Place in the data after the step.
        rates: Learning rates by name.
        result: Result of the optimizer.
        values: Further metrics to log, by their full names; the same on every rank.
    """

    position: Position
    result: StepResult

    def __init__(self, number: int, *, is_logged: bool = False) -> None:
        self.number = number
        self.is_logged = is_logged
        self.is_saved = False
        self.waited_s = 0.0
        self.rates: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.texts = np.zeros(3)
        self._names: list[str] = []
        self._histograms: dict[str, torch.Tensor] = {}
        self._sums: torch.Tensor | None = None
        self._count = 0

    def add(self, outputs: Mapping[str, Any], counts: TextCounts) -> None:
        """Add the output of one micro-batch, without a copy from the device.

        Args:
            outputs: Output of the task's forward pass.
            counts: Text counts of the micro-batch, if it has texts.
        """
        self._count += 1
        self.texts += (counts.texts, counts.tokens, counts.tokens_squared)
        values: dict[str, Any] = {"train/loss": outputs["loss"]}
        if self.is_logged:
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
        """Return means over the global batch by name, including further numbers of this rank.

        All of them share one all-reduce.

        Returns:
            The means, and for every histogram the number of values of the global batch in each of
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


def _scalar(value: Any, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(value).detach().to(device, torch.float64).reshape(())
