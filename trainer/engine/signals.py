"""Stop requests: a signal sets a flag that is read at the next boundary.

A boundary lies between two training steps, or between two batches while a column is filled.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from shards.stopping import GRACE_S
from trainer.errors import EXIT_REQUEUE, StopForRequeue

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for a checkpoint and an end."""

SAME_REQUEST_S = 2.0
"""Signals within this many seconds are one request: torchrun passes on signals that its processes
got, too."""

AFTER_BATCH = f"after this cell if it takes at most {GRACE_S:.0f} s more, else after this batch"
"""Where the filling of a column stops; finished cells stay."""


class StopRequest:
    """Flag that says whether this process was asked to stop.

    The first signal sets :attr:`signum`; a signal more than ``SAME_REQUEST_S`` later ends the
    process at once, without a checkpoint.

    Args:
        is_training: Whether the loop that reads the flag is running. Before it runs, there is
            nothing to save and no step to wait for, so a signal ends the process at once, to be
            started again; imports and the building of a model may take a minute.
        boundary: Where the loop stops, in words.
    """

    def __init__(
        self, *, is_training: bool = True, boundary: str = "after this step with a checkpoint"
    ) -> None:
        self.signum = 0
        self.is_training = is_training
        self._boundary = boundary
        self._since = 0.0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if self.signum and now - self._since > SAME_REQUEST_S:
            os._exit(128 + signum)
        if self.signum:
            return
        self.signum, self._since = signum, now
        name = signal.Signals(signum).name
        if self.is_training:
            _say(f"{name}: stopping {self._boundary}; a second signal ends at once")
        else:
            # Raise no exception: inside an import, it may be taken for a missing package.
            _say(f"{name}: stopped before training began; run the same command again")
            # A scheduler starts the run again; after Ctrl-C, a user wants it to end.
            os._exit(128 + signum if signum == signal.SIGINT else EXIT_REQUEUE)

    def check(self, left_s: float = math.inf) -> None:
        """Raise if the process was asked to stop, unless the current work can be finished.

        Args:
            left_s: Seconds until the current work can be kept; the work continues if it ends within
                ``GRACE_S`` of the signal.

        Raises:
            StopForRequeue: The process was asked to stop; the caller adds the remaining work.
        """
        if self.signum and time.monotonic() - self._since + left_s > GRACE_S:
            raise StopForRequeue(f"stopped by {signal.Signals(self.signum).name}")


@contextlib.contextmanager
def stop_on_signals(**how: Any) -> Iterator[StopRequest]:
    """Catch the stop signals during the block, and restore the old handlers after it.

    Outside the main thread, Python allows no handlers, so no stop is ever requested.

    Args:
        how: Arguments of :class:`StopRequest`.
    """
    request = StopRequest(**how)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    # os.write, not print: a handler may interrupt a print that holds the stream's lock.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{line}\n".encode())
