"""Reading what a network file system shows late.

On NFS a file that another node has just renamed into place may not be found yet (ENOENT), and one
that was replaced under an open handle is refused (ESTALE). Both pass within a second or so; a file
that is truly gone stays gone.
"""

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

WAITS_S = (0.1, 0.2, 0.4, 0.8)
"""Between tries; their sum is what a file that is truly missing costs."""

_PASSING = {errno.ENOENT, errno.ESTALE}


def again_where_stale(read: Callable[P, T]) -> Callable[P, T]:
    """Let a function that only reads try again, a few times, when a file was late or stale.

    Its errors are told by their causes: an ``OSError`` with ENOENT or ESTALE anywhere in the chain.
    Everything else, and the last try's error, is raised as it is.

    Args:
        read: The function.
    """

    @functools.wraps(read)
    def patient(*args: P.args, **kwargs: P.kwargs) -> T:
        for wait_s in WAITS_S:
            try:
                return read(*args, **kwargs)
            except Exception as error:
                if not is_passing(error):
                    raise
            time.sleep(wait_s)
        return read(*args, **kwargs)

    return patient


def is_passing(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is one of those that may pass by themselves."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False
