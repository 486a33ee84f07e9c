"""Estimate how long the rest of a pipeline takes, from the finished steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from launchers.steps import Step
from shards.progress import format_duration


class Estimate:
    """Learns from finished steps; assumes that steps of one kind take the same time."""

    def __init__(self) -> None:
        """Start without any experience."""
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def done(self, step: Step, seconds: float) -> None:
        """Record the duration of a finished step."""
        self._seconds[step.kind].append(seconds)

    def seconds(self, step: Step) -> float | None:
        """Return the mean seconds of the step's kind, else of all steps, else None."""
        alike = self._seconds.get(step.kind)
        if alike:
            return sum(alike) / len(alike)
        known = [value for values in self._seconds.values() for value in values]
        return sum(known) / len(known) if known else None

    def left(self, steps: Sequence[Step]) -> str:
        """Describe the time that unfinished steps will take."""
        expected = [self.seconds(step) for step in steps]
        if any(value is None for value in expected):
            return "time left not known yet"
        return f"about {format_duration(sum(value or 0.0 for value in expected))} left"
