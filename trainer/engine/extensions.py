"""DeepSpeed's compiled libraries: compilers, folders, locks, and leftovers of killed runs.

This module does not import torch.

Libraries are compiled for the exact CPU type of the machine. If nodes with different CPUs share a
home folder, the library of one node is an illegal instruction on another, so each CPU type has its
own folder.

While torch compiles a library, it keeps an empty file ``lock`` next to it, and waits for ever for a
lock that a killed process left behind. This project compiles under a kernel lock that is released
when the process ends (:class:`Baton`), so a lock file found under the kernel lock is a leftover.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainer.engine.rendezvous import is_free, is_here

VARIABLE = "TORCH_EXTENSIONS_DIR"
_CPUINFO = Path("/proc/cpuinfo")
_TELLING = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")


def cpu_type(cpuinfo: str | None = None) -> str:
    """Return a short name of the CPU type; equal names run the same compiled code.

    Args:
        cpuinfo: Linux's description of the first CPU; None reads this machine's.
    """
    if cpuinfo is None:
        cpuinfo = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
    first = cpuinfo.strip().split("\n\n")[0]
    facts = dict(line.partition(":")[::2] for line in first.splitlines())
    told = [
        " ".join(sorted(value.split()))
        for name, value in sorted((name.strip(), value) for name, value in facts.items())
        if name in _TELLING
    ]
    digest = hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()
    return f"cpu-{digest[:10]}"


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: the one in ``CXX``, or a usual one."""
    names = ("c++", "g++", "clang++", os.environ.get("CXX", ""))
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_ninja() -> str | None:
    """Return the path of ninja; pip's copy lies next to the interpreter."""
    beside = Path(sys.executable).with_name("ninja")
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


def extensions_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of this CPU type's libraries, in the configured or torch's folder.

    Args:
        environment: Variables, of which ``TORCH_EXTENSIONS_DIR`` is read.
    """
    given = environment.get(VARIABLE)
    folder = Path(given) if given else Path("~/.cache/torch_extensions").expanduser()
    name = cpu_type()
    return folder if folder.name == name else folder / name


def use_own_folder(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make this process and its children compile into this CPU type's folder; idempotent."""
    environment[VARIABLE] = str(extensions_folder(environment))


SAY_S = 5.0
"""Seconds that a start waits for another compiling process before it prints a line."""

_OWNER = "owner"  # next to torch's "lock": held by the compiling process, as a kernel lock


class Baton:
    """Replacement of torch's ``FileBaton``: one process compiles at a time.

    No process waits for a dead process. Every process compiles in turn, so the next process
    finishes the work of a killed one; if nothing is left to compile, a turn takes a moment.

    Args:
        path: torch's lock file, in the folder of one library.

    Attributes:
        note: Called with true when compiling, or waiting for a compiling process, begins, and with
            false when it ends.
    """

    note: Callable[[bool], None] = staticmethod(lambda is_compiling: None)

    def __init__(self, path: str, **_: Any) -> None:
        self._path = Path(path)
        self._owner = self._path.with_name(_OWNER)
        self._lock = FileLock(self._path.with_name(f"{_OWNER}.lock"))

    def try_acquire(self) -> bool:
        """Wait until no living process compiles, remove a killed one's lock file; return True."""
        self.note(True)
        try:
            self._lock.acquire(timeout=SAY_S)
        except Timeout:
            with contextlib.suppress(OSError):
                who = self._owner.read_text(encoding="utf-8").strip()
                _tell(f"waiting for {who}, which compiles {self._path.parent}")
            self._lock.acquire()
        except NotImplementedError:
            return self._take_without_locks()
        if self._path.exists():
            _tell(f"removed {self._path}, which a killed start left behind")
        if not any(self._path.parent.glob("*.so")):
            _tell(f"compiling {self._path.parent}, once on this machine: a minute or more")
        self._path.touch()  # for programs that know only torch's file
        said = f"process {os.getpid()} on {socket.gethostname()}"
        self._owner.write_text(said + "\n", encoding="utf-8")
        return True

    def _take_without_locks(self) -> bool:
        """Take torch's lock file on a file system without locks, as torch does."""
        try:
            self._path.touch(exist_ok=False)
        except FileExistsError:
            _tell(
                f"waiting for another process that compiles {self._path.parent}; if no process "
                f"does, a killed start left {self._path}: delete it"
            )
            return False
        return True

    def wait(self) -> None:
        """Wait until torch's file is gone, on a file system without locks."""
        while self._path.exists():
            time.sleep(0.1)
        self.note(False)

    def release(self) -> None:
        """Let the next process compile."""
        self._path.unlink(missing_ok=True)
        self._owner.unlink(missing_ok=True)
        self._lock.release()
        self.note(False)


def use_batons(note: Callable[[bool], None]) -> None:
    """Make torch compile under :class:`Baton` in this process.

    Args:
        note: :attr:`Baton.note`.
    """
    from torch.utils import cpp_extension

    Baton.note = staticmethod(note)
    module: Any = cpp_extension
    module.FileBaton = Baton


_SEGMENT = re.compile(r"deepspeed_allreduce_buffer_(\d+)_(.+)_(\d+)_\d+")


def stale_segments(folder: Path = Path("/dev/shm")) -> list[Path]:
    """Find shared memory of DeepSpeed that this user's killed runs left on this machine.

    Segments are named after the rendezvous port, which a run holds as long as it lives.

    Args:
        folder: Where shared memory is mounted.
    """
    found = []
    for path in sorted(folder.glob("deepspeed_allreduce_buffer_*")):
        match = _SEGMENT.fullmatch(path.name)
        if match is None or int(match[1]) != os.getuid():
            continue
        if is_here(match[2]) and is_free(int(match[3])):
            found.append(path)
    return found


def remove_stale_segments(folder: Path = Path("/dev/shm")) -> None:
    """Remove the segments that :func:`stale_segments` finds, and print how many."""
    paths = stale_segments(folder)
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        _tell(f"removed {len(paths)} segments of shared memory that killed runs left in {folder}")


def _tell(line: str) -> None:
    print(f"tnr: {line}", file=sys.stderr, flush=True)
