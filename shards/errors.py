"""Define the root of every error that this project raises on purpose.

A message says what is wrong, the value found, what was expected, and what to do. The command line
prints the message alone, without a traceback, and exits with the class's ``exit_code``.
"""

import re

_LONGEST_LINE = 400
_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """Escape the line breaks and control characters of a text as Python does in quotes.

    Files and messages of other libraries may hold such characters, which would break the line or
    control a terminal.
    """
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """Summarise an error in one line.

    The line has the error's class and the first complete line of its message; then the same for its
    cause, unless the message already has it.
    """
    text = joined_line(str(error)) or "no message"
    cause = error.__cause__ or (None if str(error).strip() else error.__context__)
    line = f"{type(error).__name__}: {text}"
    if cause is not None and (joined_line(str(cause)) or "\n") not in text:
        line = f"{line}, because of {first_line(cause)}"
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 1]}…"


def joined_line(text: str) -> str:
    """Take a text's first line, plus the next ones after a colon or comma."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    joined = lines[0] if lines else ""
    for line in lines[1:]:
        if not joined.endswith((":", ",")):
            break
        joined += f" {line}"
    return joined


class TinyNewsRecError(Exception):
    """An error that the user can fix; the command line exits with ``exit_code``."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message in one line."""
        return one_line(super().__str__())


class UsageError(TinyNewsRecError):
    """The command line, a recipe or an option is wrong."""

    exit_code = 2


class DataError(TinyNewsRecError):
    """Input data are missing, malformed, or refused."""


class DamageError(DataError):
    """Stored bytes have changed; the message names the file, the place and the cause."""


class ColumnError(DataError):
    """A column set is missing, incomplete or made from other data.

    The message names the field that differs, and the remedy.
    """


class StoppedError(TinyNewsRecError):
    """The process was asked to stop; committed work is kept, and the same command continues."""

    exit_code = 75
