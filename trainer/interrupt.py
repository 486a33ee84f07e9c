"""Ctrl-C and SIGTERM: one line and exit code 130 or 143, never a traceback.

``trainer.cli.main`` imports this first. While the command line is read, and inside any import,
there is nothing to clean up, and an exception might be taken for a missing package or be lost in a
callback, so the process ends at once. Elsewhere in a running command, a signal raises Python's
``KeyboardInterrupt``, so that the command releases what it holds. Commands that handle SIGTERM
better, as training does, install their own handler.
"""

from __future__ import annotations

import _signal  # the base of signal, whose enumerations take longer to import than the rest
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

_is_running = False
_received: int = _signal.SIGINT


def watch(signum: int = _signal.SIGINT) -> None:
    """Handle the signal from now on, as a command's process."""
    _signal.signal(signum, _handle)


def set_running(is_running: bool) -> None:
    """Set whether the command itself runs, between parsing and its end."""
    global _is_running
    _is_running = is_running


def line() -> str:
    """Return the line about the received signal."""
    return "tnr: interrupted" + (" by SIGTERM" if _received == _signal.SIGTERM else "")


def exit_code() -> int:
    """Return the exit code for the received signal."""
    return 128 + _received


def end() -> None:
    """Print the line and end at once."""
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
    """Return whether this process is one of the project's commands."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = sys.argv[0] if spec is None else spec.name  # no pathlib, whose import is slow
    return name.rpartition("/")[2] in ("tnr", "trainer.cli.main", "launchers.ranks")


if _is_command():
    watch()
