"""How long the rest of a pipeline will take, from the steps that are done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from launchers.steps import Step
from shards.progress import format_duration


class Estimate:
    """Learns from finished steps: those of one kind take alike long."""

    def __init__(self) -> None:
        """Start without any experience."""
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def done(self, step: Step, seconds: float) -> None:
        """Take note of a finished step."""
        self._seconds[step.kind].append(seconds)

    def seconds(self, step: Step) -> float | None:
        """Expected seconds of a step: the mean of its kind, else of all; None before the first."""
        alike = self._seconds.get(step.kind)
        if alike:
            return sum(alike) / len(alike)
        known = [value for values in self._seconds.values() for value in values]
        return sum(known) / len(known) if known else None

    def left(self, steps: Sequence[Step]) -> str:
        """What to tell about steps that are still to be done."""
        expected = [self.seconds(step) for step in steps]
        if any(value is None for value in expected):
            return "time left not known yet"
        return f"about {format_duration(sum(value or 0.0 for value in expected))} left"
