"""One record goes to three places: the console, TensorBoard and ``metrics.jsonl``. Rank 0 only."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import TrainingError
from trainer.monitor.metrics import MetricsFile


@dataclass(kw_only=True)
class Record:
    """What is said about one step.

    Attributes:
        step: Optimizer step, from 1.
        values: Numbers by their full names (``train/loss``, ``speed/samples_per_s``).
    """

    step: int
    values: dict[str, float] = field(default_factory=dict)


class Monitor:
    """Writes records.

    Args:
        folder: The run folder.
        steps: Steps of the whole run.
        resumed_step: Step of the checkpoint that the run goes on from, 0 at its start. Later
            records of an earlier attempt are removed from ``metrics.jsonl`` and hidden in
            TensorBoard.
        say: Prints a line.
    """

    def __init__(
        self, folder: Path, steps: int, resumed_step: int, say: Callable[[str], None] = print
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._steps = steps
        self._say = say
        self._started = time.monotonic()
        self._first_step = resumed_step
        self._metrics = MetricsFile(folder, resumed_step)
        self._tensorboard: Any = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resumed_step + 1, flush_secs=30
        )

    def write(self, record: Record) -> None:
        """Write one record everywhere.

        Raises:
            TrainingError: The disk refused.
        """
        try:
            self._metrics.write({"step": record.step, "time": time.time(), **record.values})
            for name, value in record.values.items():
                self._tensorboard.add_scalar(name, value, record.step)
        except OSError as error:
            raise TrainingError(
                f"metrics of step {record.step} cannot be written to {self._metrics.path}: "
                f"{error.strerror or error}; make room and start the run again"
            ) from error
        self._say(console_line(record, self._steps, self._seconds_left(record.step)))

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._metrics.sync()
        self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close."""
        self._metrics.close()
        self._tensorboard.close()

    def _seconds_left(self, step: int) -> float:
        done = max(1, step - self._first_step)
        return (time.monotonic() - self._started) / done * (self._steps - step)


def console_line(record: Record, steps: int, seconds_left: float) -> str:
    """The line of a record: step, time left, losses, rates, then whatever else the task reports.

    Args:
        record: The record.
        steps: Steps of the whole run.
        seconds_left: Estimate for the rest of the run, in seconds.
    """
    width = len(str(steps))
    parts = [f"step {record.step:>{width}}/{steps}", f"left {duration(seconds_left)}"]
    for name, value in record.values.items():
        group, _, short = name.partition("/")
        parts.append(_shown(short if group in ("train", "speed") else name, value))
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _shown(name: str, value: float) -> str:
    for ending, unit in (("_pct", "%"), ("_mib", " MiB"), ("_per_s", "/s")):
        if name.endswith(ending):
            return f"{name.removesuffix(ending)} {value:.1f}{unit}"
    if name.startswith("lr"):
        return f"{name} {value:.3g}"
    return f"{name} {value:.4g}"
