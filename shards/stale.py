"""Retry reads on a network file system that shows changes late.

On NFS, a file that another node has just renamed into place may not be found yet (ENOENT), and a
file that was replaced under an open handle is refused (ESTALE). Both errors pass within about a
second; a missing file stays missing.
"""

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

WAITS_S = (0.1, 0.2, 0.4, 0.8)
"""Waits between attempts; their sum is the delay before a missing file is reported."""

_PASSING = {errno.ENOENT, errno.ESTALE}


def again_where_stale(read: Callable[P, T]) -> Callable[P, T]:
    """Make a function that only reads retry after a late or stale file.

    An error is recognised by its causes: an ``OSError`` with ENOENT or ESTALE anywhere in the
    chain. Any other error, and the last attempt's error, is raised unchanged.

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
    """Tell whether an error, or its cause, may pass by itself."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False
