"""The operating system's errors, whoever reports them: which file, what happened, in one line.

Python's own writers say which file only where they open it, and libraries written in Rust or C++
raise exceptions of their own, whose text alone tells that the disk is full.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Rust's libraries, and an error of shutil that holds those of many files.
_TOLD = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
# What PyTorch's and NumPy's writers say of a write that was cut short; neither names a cause.
_CUT_SHORT = re.compile(r"PytorchStreamWriter|inline_container|\d+ requested and \d+ written")

# What PyTorch says of memory that the system, or a GPU, does not give.
_NO_MEMORY = re.compile(r"you tried to allocate \d+ bytes|CUDA out of memory[^.]*\.[^.]*\.\d* \w+")


def os_error(error: BaseException) -> OSError | None:
    """Return the operating system's error that an exception is or reports, None where neither.

    Args:
        error: Of any library: ``OSError``, safetensors' and tokenizers' exceptions (``os error
            28``), PyTorch's and NumPy's of files that could not be written to their end.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = str(error)
    told = _TOLD.search(text)
    if told is not None:
        number = int(told[1] or told[2])
        return OSError(number, os.strerror(number))
    if isinstance(error, OSError | RuntimeError) and _CUT_SHORT.search(text):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def memory_error(error: BaseException) -> str | None:
    """Say in one line that memory was refused; None where the error is another.

    Args:
        error: Python's and NumPy's ``MemoryError``, or what PyTorch raises in its place.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        told = text or "no more is to be had"
    elif isinstance(error, RuntimeError) and (found := _NO_MEMORY.search(text)):
        told = found[0]
    else:
        return None
    return f"not enough memory: {told}; lower the sizes that were asked for"


@contextlib.contextmanager
def naming(path: str | Path, *, of: Path | None = None) -> Iterator[None]:
    """Name ``path`` in an operating system's error of the block that names no file.

    Args:
        path: What people know.
        of: A temporary name, for which ``path`` is named too.

    Raises:
        OSError: Whatever the block met, as :func:`os_error` sees it.
    """
    try:
        yield
    except Exception as error:
        found = os_error(error)
        if found is None or (found.filename is not None and str(found.filename) != str(of)):
            raise
        raise OSError(found.errno, found.strerror, str(path)) from error


def os_error_line(error: OSError) -> str:
    """Say in one line what the operating system refused, and what to do."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        name = error.filename if error.filename2 is None else error.filename2  # of a copy
        where = "" if name is None else f" {os.fsdecode(name)}"
        return f"cannot write{where}: {reason}; make room and run the same command again"
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
