"""How a command ends: with an exit code, and one line on standard error for user errors."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO

from shards.errors import one_line
from shards.location import shown_text
from shards.os_errors import memory_error, naming, os_error, os_error_line
from trainer import interrupt
from trainer.errors import EXIT_DONE, EXIT_FAILED, TinyNewsRecError

STDOUT, STDERR = "standard output", "standard error"


_COMMANDS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tabs and line ends, and bytes that are not UTF-8."""


class _Stream(io.TextIOWrapper):
    """A standard stream whose errors name the stream, as errors of a file name the file.

    Many commands print texts of news, logs and records, and no text may send control sequences to a
    terminal: standard output shows control characters escaped as in JSON.
    """

    def __init__(self, buffer: BinaryIO, name: str, former: object, **options: Any) -> None:
        super().__init__(buffer, **options)
        self.title = name
        self.former = former  # keeps the buffer open as long as this stream

    def write(self, text: str) -> int:
        """Write a text; standard output escapes control characters."""
        if self.title == STDOUT:  # standard error may move the cursor for progress bars
            text = _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        with naming(self.title):
            return super().write(text)

    def flush(self) -> None:
        """Write buffered text."""
        with naming(self.title):
            super().flush()


def name_standard_streams() -> None:
    """Make errors of the standard streams name the stream; open closed streams.

    For a stream that is closed at the start, Python has no object, and the next opened file gets
    the stream's number: output of a library would then go into that file. Writing to a closed
    standard output fails, as it should; text for a closed standard error is lost.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this stream's
    sys.stdout = _named(sys.stdout, 1, STDOUT)
    sys.stderr = _named(sys.stderr, 2, STDERR)


def _named(stream: TextIO | None, number: int, name: str) -> TextIO:
    if stream is None:
        closed = open(number, "wb", closefd=False)  # noqa: SIM115
        return _Stream(closed, name, None, encoding="utf-8")
    if type(stream) is not io.TextIOWrapper:
        return stream  # where output is captured
    return _Stream(
        stream.buffer,
        name,
        stream,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    Returns:
        The exit code. Errors that a user can fix, including those of the operating system, have
        been printed in one line; other errors are raised.
    """
    try:
        try:
            code = command() or EXIT_DONE
        except SystemExit:  # argparse has printed a message
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # so that a full or closed output fails here, not in the teardown
        return code
    except TinyNewsRecError as error:
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        interrupt.set_running(False)  # a second Ctrl-C ends at once
        say(interrupt.line())
        return interrupt.exit_code()
    except Exception as error:
        found = os_error(error)
        if found is None:
            memory = memory_error(error)
            if memory is None:
                raise
            say_error(memory)
            return EXIT_FAILED
        if found.filename in (STDOUT, STDERR):
            _give_up(sys.stdout if found.filename == STDOUT else sys.stderr)
            if isinstance(found, BrokenPipeError):  # the reader has ended, as in `tnr runs | head`
                return 128 + signal.SIGPIPE
            say_error(f"cannot write to {found.filename}: {found.strerror}")
        else:
            say_error(one_line(os_error_line(found)))
        return EXIT_FAILED
    finally:
        interrupt.set_running(False)


def say_error(what: object) -> None:
    """Print one line that says what is wrong, without keys of URLs."""
    say(f"tnr: error: {shown_text(what)}")


def say(line: str) -> None:
    """Print a line on standard error, and ignore a full or closed stream."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """Discard a stream's buffered text, so that Python's teardown does not fail on it again."""
    with contextlib.suppress(OSError):  # streams in tests have no file number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
