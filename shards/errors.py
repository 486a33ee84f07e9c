"""The root of every error that this project raises on purpose.

A message says what is wrong, the value found, what was expected, and what to do about it. The
command line prints the message alone, without a traceback, and exits with the class's
``exit_code``.
"""

import re

_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    """Write the line breaks and control characters of a text as Python writes them in quotes.

    Files and other libraries' messages hold any: those would break the line, or command a terminal.
    """
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


class TinyNewsRecError(Exception):
    """Something the user can mend; ``exit_code`` is what the command line exits with."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, in one line."""
        return one_line(super().__str__())


class UsageError(TinyNewsRecError):
    """The command line, a recipe or an option is wrong."""

    exit_code = 2


class DataError(TinyNewsRecError):
    """Input data are missing, of the wrong form, or refused."""


class DamageError(DataError):
    """Stored bytes are not the ones that were written: names the file, the place and the cause."""


class ColumnError(DataError):
    """A column set is missing, incomplete or made from something else; names the field and the
    remedy."""


class StoppedError(TinyNewsRecError):
    """The process was asked to stop; what is committed stays, and the same command goes on."""

    exit_code = 75
