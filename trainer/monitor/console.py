"""The line of a record on the console and in ``log/train.log``."""

import time
from collections import deque
from collections.abc import Mapping

SHOWN = ("loss", "accuracy", "lr", "grad_norm", "loss_scale", "skipped_steps")
"""Metrics of ``train/`` to show, in this order; ``loss`` and ``lr`` with all their components."""
SPEEDS = ("samples_per_s", "padding_pct", "data_wait_pct", "memory_mib", "mfu_pct")
"""Metrics of ``speed/`` to show; all others are in TensorBoard and ``metrics.jsonl``."""


class Pace:
    """Estimate of a run's remaining time, from the later half of the last records.

    The first step (start-up, compilation) never counts, and slow steps after it drop out as the
    window moves on; a resumed run starts a new window. Checkpoints and exports in the window count,
    because more of them will follow.

    Args:
        steps: Steps of the whole run.
        step_s: Seconds per step before the run was resumed, for the first record.
    """

    def __init__(self, steps: int, step_s: float | None = None) -> None:
        self._steps = steps
        self._step_s = step_s
        self._seen: deque[tuple[int, float]] = deque(maxlen=200)

    def seconds_left(self, step: int, now: float | None = None) -> float | None:
        """Record that a step was reached (now, unless given) and estimate the seconds left.

        At the first record there is no measurement yet: the result is None, unless the run was
        resumed.
        """
        self._seen.append((step, time.monotonic() if now is None else now))
        # Index 0 for two records: the later half between the first and the last.
        first, since = self._seen[(len(self._seen) - 1) // 2]
        if first == step:
            return None if self._step_s is None else self._step_s * (self._steps - step)
        return (self._seen[-1][1] - since) / (step - first) * (self._steps - step)


def console_line(
    step: int, values: Mapping[str, float], steps: int, seconds_left: float | None
) -> str:
    """Format the line of a record.

    The line has step, time left, losses, learning rates, gradient norm, speed, padding, waiting
    and memory.

    Args:
        step: Step of the record.
        values: The record's metrics by their full names.
        steps: Steps of the whole run.
        seconds_left: Estimate for the rest of the run; None if there is none yet.
    """
    left = "-:--:--" if seconds_left is None else duration(seconds_left)
    parts = [f"step {step:>{len(str(steps))}}/{steps}", f"left {left}"]
    for kind in SHOWN:
        for name, value in values.items():
            short = name.removeprefix("train/")
            is_kind = short == kind or (kind in ("loss", "lr") and short.startswith(f"{kind}_"))
            if short != name and is_kind and not (kind == "loss" and short == "loss_scale"):
                if kind == "skipped_steps" and not value:
                    continue
                parts.append(_shown(short, value))
    parts += [_shown(name, values[f"speed/{name}"]) for name in SPEEDS if f"speed/{name}" in values]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds as ``h:mm:ss``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _shown(name: str, value: float) -> str:
    for ending, unit in (("_pct", "%"), ("_mib", " MiB"), ("_per_s", "/s")):
        if name.endswith(ending):
            digits = 0 if ending == "_mib" else 1
            return f"{name.removesuffix(ending)} {value:.{digits}f}{unit}"
    if name.startswith("lr"):
        return f"{name} {value:.3g}"
    return f"{name} {value:.4g}"
