"""Which checkpoints to keep: the newest, multiples of a step, and the best by a metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.schema import TrainConfig

METRIC = "metric"
"""Entry of a checkpoint's ``state.json``: name and value of the metric that chooses the best."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Rules for which checkpoints to keep; the checkpoints record all values that decide.

    Attributes:
        newest: Number of newest checkpoints to keep.
        every: Multiples of this step are kept for good; None keeps no multiples.
        metric: Metric that decides the best checkpoint; None keeps no best checkpoint.
        best_is: Which value is the best.
    """

    newest: int
    every: int | None = None
    metric: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"

    def value(self, state: Mapping[str, Any]) -> float | None:
        """Return the value of the metric in a ``state.json``; None if another metric is stored."""
        entry = state.get(METRIC)
        if self.metric is None or not isinstance(entry, Mapping):
            return None
        value = entry.get("value")
        if entry.get("name") != self.metric or not isinstance(value, (int, float)):
            return None
        return float(value) if math.isfinite(value) else None

    def best(self, values: Mapping[int, float]) -> int | None:
        """Return the best step by its value, the earlier one of ties; None without values."""
        sign = 1.0 if self.best_is == "lowest" else -1.0
        return min(values, key=lambda step: (sign * values[step], step), default=None)

    def superfluous(self, steps: Sequence[int], current: int, best: int | None) -> list[int]:
        """Return the checkpoints that may be deleted.

        Args:
            steps: Steps of all checkpoints.
            current: Step just saved. Later checkpoints belong to an abandoned past of this run:
                they do not count as newest, and stay until they are replaced.
            best: The best step.
        """
        past = sorted(step for step in steps if step <= current)
        return [
            step
            for step in past[: -self.newest]
            if step != best and not (self.every and step % self.every == 0)
        ]


def retention_of(config: TrainConfig) -> Retention:
    """Return a run's rules; a run with validation uses its validation metric."""
    run, validation = config.run, config.validates
    metric, best_is = run.best_metric, run.best_is
    if validation is not None:
        metric, best_is = f"valid/{validation.metric}", "highest"
    return Retention(
        newest=run.keep_checkpoints, every=run.keep_every, metric=metric, best_is=best_is
    )
