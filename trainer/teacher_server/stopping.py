"""Being asked to stop while columns are filled: the present cell is abandoned between two batches.

What is committed stays; a cell is committed whole or not at all, so there is nothing else to save.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from trainer.errors import StopForRequeue

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SAME_REQUEST_S = 2.0
"""Signals this close are one request: launchers pass on what their processes got as well."""


class Stop:
    """Whether this process was asked to stop. A signal long after the first ends it at once."""

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler."""
        now = time.monotonic()
        if self.signum and now - self._since > SAME_REQUEST_S:
            os._exit(128 + signum)
        if not self.signum:
            self.signum, self._since = signum, now
            # os.write, not print: a handler may interrupt a print that holds the stream's lock.
            name = signal.Signals(signum).name
            said = f"{name}: stopping after this batch; once more ends at once\n"
            with contextlib.suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said.encode())

    def check(self) -> None:
        """Raise where the process was asked to stop.

        Raises:
            StopForRequeue: It was; the caller adds what is left.
        """
        if self.signum:
            raise StopForRequeue(f"stopped by {signal.Signals(self.signum).name}")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch the stop signals while the block runs, and give the former handlers back after it.

    Outside the main thread, where Python allows no handlers, nobody is ever asked to stop.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    former = {number: signal.signal(number, stop.handle) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
