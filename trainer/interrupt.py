"""Ctrl-C and SIGTERM: one line and exit code 130 or 143, never a traceback.

``trainer.cli.main`` imports this before anything else. While the command line is read, and inside
any import, there is nothing to clean up, and an exception might be taken for a missing package or
be lost in a callback: the process ends at once. Elsewhere in a running command a signal is Python's
``KeyboardInterrupt``, so that what the command holds is given back. Commands that have a better
answer to SIGTERM, as training has, give their own.
"""

from __future__ import annotations

import _signal  # what signal is made of: that module's enumerations take longer than the rest here
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_is_running = False
_received: int = _signal.SIGINT


def watch(signum: int = _signal.SIGINT) -> None:
    """Answer the signal from now on, as the process of a command."""
    _signal.signal(signum, _handle)


def set_running(is_running: bool) -> None:
    """Say whether the command itself runs, after its words were read and before its end."""
    global _is_running
    _is_running = is_running


def line() -> str:
    """What is said of the signal that came."""
    return "tnr: interrupted" + (" by SIGTERM" if _received == _signal.SIGTERM else "")


def exit_code() -> int:
    """What the command ends with after the signal that came."""
    return 128 + _received


def end() -> None:
    """Say so, and leave at once."""
    try:
        os.write(2, f"{line()}\n".encode())
    finally:
        os._exit(exit_code())


def _handle(signum: int, frame: FrameType | None) -> None:
    global _received
    _received = signum
    if not _is_running or _is_importing(frame):
        end()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _is_command() -> bool:
    """Whether this process is one of the project's commands, not a test or a library's user."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = sys.argv[0] if spec is None else spec.name  # no pathlib: importing it takes a while
    return name.rpartition("/")[2] in ("tnr", "trainer.cli.main", "launchers.ranks")


if _is_command():
    watch()
