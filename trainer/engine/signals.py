"""Being asked to stop: a signal becomes a flag that the loop reads at its next step boundary."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for a checkpoint and an end."""

SAME_REQUEST_S = 2.0
"""Signals this close are one request: torchrun passes on what its processes got as well."""


class StopRequest:
    """Whether this process was asked to stop.

    The first signal sets :attr:`signum`; one that comes more than ``SAME_REQUEST_S`` later ends the
    process at once, without a checkpoint.
    """

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
            said = f"{name}: stopping after this step with a checkpoint; once more ends at once\n"
            with contextlib.suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, said.encode())


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch the stop signals while the block runs, and give the former handlers back after it.

    Outside the main thread, where Python allows no handlers, the request is simply never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.signal(number, request.handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
