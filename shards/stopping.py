"""Handle a request to stop: finish a cell that is nearly done first."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from shards.errors import StoppedError

GRACE_S = 20.0
"""Seconds after a signal in which current work may be finished: Slurm and Kubernetes kill 30 s
after SIGTERM by default."""


class Pace:
    """Estimates how long the rest of a cell takes, from its first part.

    Args:
        work: Work of the whole cell, in any unit.
    """

    def __init__(self, work: int) -> None:
        """Start the clock."""
        self._work = work
        self._left = work
        self.start_s = time.monotonic()

    def add(self, units: int) -> int:
        """Count a batch; return the part of it that belongs to the cell."""
        counted = min(units, self._left)
        self._left -= counted
        return counted

    @property
    def left_s(self) -> float:
        """Estimate the seconds until the cell is done; infinite before any work is done."""
        done = self._work - self._left
        elapsed_s = time.monotonic() - self.start_s
        return elapsed_s / done * self._left if done else math.inf


class Stopping:
    """Records whether SIGTERM came, and when."""

    def __init__(self) -> None:
        """Start without a signal."""
        self._since_s = math.inf

    @property
    def is_asked(self) -> bool:
        """Whether the process must end."""
        return self._since_s < math.inf

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if not self.is_asked:
            self._since_s = time.monotonic()

    def check(self, left_s: float = math.inf) -> None:
        """Raise if the process must end, unless the current cell can be finished in time.

        Args:
            left_s: Seconds that the current cell still takes.

        Raises:
            StoppedError: The process must end now.
        """
        if self.is_asked and time.monotonic() - self._since_s + left_s > GRACE_S:
            raise StoppedError("stopped by SIGTERM")


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Stopping]:
    """Catch SIGTERM during the block; outside the main thread nothing can be caught."""
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    former = signal.signal(signal.SIGTERM, stopping.handle)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, former)


class TaskStopping(Stopping):
    """SIGTERM in a worker: a current task is finished; an idle worker ends at once.

    Whoever ends a pool of processes by SIGTERM therefore never waits for an idle worker.
    """

    def __init__(self) -> None:
        """Catch SIGTERM from now on."""
        super().__init__()
        self._is_busy = False
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler."""
        super().handle(signum, frame)
        if not self._is_busy:
            self._end()

    @contextlib.contextmanager
    def task(self) -> Iterator[None]:
        """Mark a task as current during the block."""
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False
            if self.is_asked:
                self._end()

    def _end(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
