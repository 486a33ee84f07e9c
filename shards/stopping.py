"""Being asked to stop while a column is filled: a cell that is nearly done is finished first."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from shards.errors import StoppedError

GRACE_S = 20.0
"""Seconds after a signal in which work in hand may be finished: Slurm and Kubernetes kill 30 s
after SIGTERM unless told otherwise."""


class Pace:
    """How long the rest of a cell takes, by what its first part took.

    Args:
        work: Of the whole cell, in any unit.
    """

    def __init__(self, work: int) -> None:
        """Start the clock."""
        self._work = work
        self._left = work
        self.start_s = time.monotonic()

    def add(self, units: int) -> int:
        """Count a batch; return how much of it belongs to the cell's work."""
        counted = min(units, self._left)
        self._left -= counted
        return counted

    @property
    def left_s(self) -> float:
        """Seconds until the cell is computed; infinite before anything is done."""
        done = self._work - self._left
        elapsed_s = time.monotonic() - self.start_s
        return elapsed_s / done * self._left if done else math.inf


class Stopping:
    """Whether SIGTERM came, and when."""

    def __init__(self) -> None:
        """Nothing came yet."""
        self._since_s = math.inf

    @property
    def is_asked(self) -> bool:
        """Whether the process is to end."""
        return self._since_s < math.inf

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if not self.is_asked:
            self._since_s = time.monotonic()

    def check(self, left_s: float = math.inf) -> None:
        """Raise where the process is to end, unless the cell in hand is done within the grace.

        Args:
            left_s: Seconds that the cell in hand still takes.

        Raises:
            StoppedError: The process is to end now.
        """
        if self.is_asked and time.monotonic() - self._since_s + left_s > GRACE_S:
            raise StoppedError("stopped by SIGTERM")


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Stopping]:
    """Catch SIGTERM while the block runs; outside the main thread nothing can be caught."""
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
    """SIGTERM in a worker process: its task in hand is finished, and without one it ends at once.

    So whoever ends a pool of processes by SIGTERM never waits for one that has nothing to do.
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
        """Have a task in hand while the block runs."""
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
