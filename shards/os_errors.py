"""Turn the operating system's errors into one line that names the file and the cause.

Python's own writers name the file only where they open it, and libraries written in Rust or C++
raise their own exceptions, whose text alone tells that the disk is full.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Forms in Rust's libraries, and in an error of shutil that holds the errors of many files.
_TOLD = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
# Texts of PyTorch's and NumPy's writers for an incomplete write; neither names a cause.
_CUT_SHORT = re.compile(r"PytorchStreamWriter|inline_container|\d+ requested and \d+ written")

# Texts of PyTorch when the system or a GPU refuses memory.
_NO_MEMORY = re.compile(r"you tried to allocate \d+ bytes|CUDA out of memory[^.]*\.[^.]*\.\d* \w+")


def os_error(error: BaseException) -> OSError | None:
    """Find the operating system's error that an exception is or reports; else return None.

    Args:
        error: Error of any library: ``OSError``, safetensors' and tokenizers' exceptions (``os
            error 28``), and those of PyTorch and NumPy for incompletely written files.
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
    """Describe in one line that memory was refused; return None for any other error.

    Args:
        error: ``MemoryError`` of Python or NumPy, or PyTorch's equivalent.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        told = text or "the system has no more"
    elif isinstance(error, RuntimeError) and (found := _NO_MEMORY.search(text)):
        told = found[0]
    else:
        return None
    return f"not enough memory: {told}; lower the sizes that you asked for"


@contextlib.contextmanager
def naming(path: str | Path, *, of: Path | None = None) -> Iterator[None]:
    """Add ``path`` to an operating system's error of the block that names no file.

    Args:
        path: The path that users know.
        of: A temporary name, which ``path`` replaces in the error.

    Raises:
        OSError: The error of the block, as :func:`os_error` finds it.
    """
    try:
        yield
    except Exception as error:
        found = os_error(error)
        if found is None or (found.filename is not None and str(found.filename) != str(of)):
            raise
        raise OSError(found.errno, found.strerror, str(path)) from error


def os_error_line(error: OSError) -> str:
    """Describe in one line what the operating system refused, and what to do."""
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        name = error.filename if error.filename2 is None else error.filename2  # target of a copy
        where = "" if name is None else f" {os.fsdecode(name)}"
        return f"cannot write{where}: {reason}; free space and run the same command again"
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
