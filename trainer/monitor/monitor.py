"""Monitor: writes each record to the console, TensorBoard and ``metrics.jsonl``; rank 0 only."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import TrainingError
from trainer.monitor.board import Board
from trainer.monitor.console import Pace, console_line
from trainer.monitor.metrics import MetricsFile


@dataclass(kw_only=True)
class Record:
    """Metrics of one step.

    Attributes:
        step: Optimizer step, from 1.
        values: Metrics by their full names (``train/loss``, ``speed/samples_per_s``).
        histograms: By name, the number of values in each of equal bars between 0 and 1; shown only
            in TensorBoard.
    """

    step: int
    values: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)


class Monitor:
    """Writer of records to all places.

    Args:
        folder: The run folder.
        steps: Steps of the whole run.
        resumed_step: Step of the checkpoint that the run continues from, 0 at its start. Later
            records of an earlier attempt are removed from ``metrics.jsonl`` and hidden in
            TensorBoard.
        say: Prints a line.
        settings: Settings by full name for TensorBoard's HPARAMS page.
        finals: Metrics of that page that the first record does not have yet.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        resumed_step: int,
        say: Callable[[str], None] = print,
        settings: Mapping[str, Any] | None = None,
        finals: Sequence[str] = (),
    ) -> None:
        self._steps = steps
        self._say = say
        self._metrics = MetricsFile(folder, resumed_step)
        self._pace = Pace(steps, self._metrics.step_s)
        self._board = Board(folder / "tensorboard", resumed_step, settings or {}, finals)

    def write(self, record: Record) -> None:
        """Write one record to all places.

        Raises:
            TrainingError: The disk refused the write.
        """
        try:
            self._metrics.write({"step": record.step, "time": time.time(), **record.values})
            self._board.write(record.step, record.values, record.histograms)
        except OSError as error:
            raise TrainingError(
                f"metrics of step {record.step} cannot be written to {self._metrics.path}: "
                f"{error.strerror or error}; free space and start the run again"
            ) from error
        left = self._pace.seconds_left(record.step)
        self._say(console_line(record.step, record.values, self._steps, left))

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._metrics.sync()
        self._board.flush()

    def end(self) -> None:
        """Mark the run as finished."""
        self._board.end()

    def close(self) -> None:
        """Flush and close."""
        self._metrics.close()
        self._board.close()
