"""Which checkpoints stay: the newest few, multiples for good, and the best by a metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.schema import TrainConfig

METRIC = "metric"
"""Entry of a checkpoint's ``state.json``: name and value of the metric that chooses the best."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The rules; everything they decide by is recorded in the checkpoints.

    Attributes:
        newest: How many of the newest stay.
        every: Multiples of this step stay for good; None for none.
        metric: The best by this metric stays; None for none.
        best_is: Which value is the best.
    """

    newest: int
    every: int | None = None
    metric: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"

    def value(self, state: Mapping[str, Any]) -> float | None:
        """The value of the metric in a ``state.json``; None where it has none, or another's."""
        entry = state.get(METRIC)
        if self.metric is None or not isinstance(entry, Mapping):
            return None
        value = entry.get("value")
        if entry.get("name") != self.metric or not isinstance(value, (int, float)):
            return None
        return float(value) if math.isfinite(value) else None

    def best(self, values: Mapping[int, float]) -> int | None:
        """The best step by its value, the earlier of equals; None where there is none."""
        sign = 1.0 if self.best_is == "lowest" else -1.0
        return min(values, key=lambda step: (sign * values[step], step), default=None)

    def superfluous(self, steps: Sequence[int], current: int, best: int | None) -> list[int]:
        """Which checkpoints may go.

        Args:
            steps: All there are.
            current: The one just saved. Later ones belong to a past of this run that it could not
                go on from: they are no "newest", and stay until they are replaced.
            best: The best one.
        """
        past = sorted(step for step in steps if step <= current)
        return [
            step
            for step in past[: -self.newest]
            if step != best and not (self.every and step % self.every == 0)
        ]


def retention_of(config: TrainConfig) -> Retention:
    """The rules that a run is configured with: one that validates goes by its validation."""
    run, validation = config.run, config.validates
    metric, best_is = run.best_metric, run.best_is
    if validation is not None:
        metric, best_is = f"valid/{validation.metric}", "highest"
    return Retention(
        newest=run.keep_checkpoints, every=run.keep_every, metric=metric, best_is=best_is
    )
