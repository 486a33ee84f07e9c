"""The root of every error that this project raises on purpose.

A message says what is wrong, the value found, what was expected, and what to do about it. The
command line prints the message alone, without a traceback, and exits with the class's
``exit_code``.
"""


class TinyNewsRecError(Exception):
    """Something the user can mend; ``exit_code`` is what the command line exits with."""

    exit_code = 1


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
