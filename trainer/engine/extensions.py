"""What DeepSpeed compiles with, where it keeps what it compiled, and what killed runs left. No
torch.

Libraries are compiled for the very CPU that compiles them. In a home folder that unlike nodes
share, the library of one node is the illegal instruction of another, so each type of CPU has a
folder of its own.

torch marks a library that is being compiled by an empty file ``lock`` beside it, and waits for ever
for one that a killed process left. Ours compile while they hold a lock that the kernel gives back
when they end (:class:`Baton`): the file that one finds then is a leftover.
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
    """A short name that two CPUs share only where code compiled for one runs on the other.

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
    """Path of a C++ compiler: a usual one, or the one that ``CXX`` names."""
    names = ("c++", "g++", "clang++", os.environ.get("CXX", ""))
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_ninja() -> str | None:
    """Path of ninja, which pip puts beside an interpreter that may not be on the path."""
    beside = Path(sys.executable).with_name("ninja")
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


def extensions_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Folder of this CPU's libraries, inside the one that is configured or torch's own.

    Args:
        environment: ``TORCH_EXTENSIONS_DIR``.
    """
    given = environment.get(VARIABLE)
    folder = Path(given) if given else Path("~/.cache/torch_extensions").expanduser()
    name = cpu_type()
    return folder if folder.name == name else folder / name


def use_own_folder(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process and its children compile into this CPU's folder; twice is as once."""
    environment[VARIABLE] = str(extensions_folder(environment))


SAY_S = 5.0
"""How long a start waits for another that compiles before it says so."""

_OWNER = "owner"  # beside torch's "lock": who compiles, held by a lock of the kernel


class Baton:
    """Takes the place of torch's ``FileBaton``: one process compiles, and none is waited for that
    has ended.

    Every process compiles in its turn, so that one whose forerunner was killed finishes the work;
    where there is nothing left to do, that takes a moment.

    Args:
        path: torch's lock file, in the folder of one library.

    Attributes:
        note: Is told that compiling, or waiting for another who compiles, begins and ends.
    """

    note: Callable[[bool], None] = staticmethod(lambda is_compiling: None)

    def __init__(self, path: str, **_: Any) -> None:
        self._path = Path(path)
        self._owner = self._path.with_name(_OWNER)
        self._lock = FileLock(self._path.with_name(f"{_OWNER}.lock"))

    def try_acquire(self) -> bool:
        """Wait until no living process compiles, remove what a killed one left; True."""
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
        self._path.touch()  # for programs that know of torch's file alone
        said = f"process {os.getpid()} on {socket.gethostname()}"
        self._owner.write_text(said + "\n", encoding="utf-8")
        return True

    def _take_without_locks(self) -> bool:
        """On a file system without locks: as torch does it."""
        try:
            self._path.touch(exist_ok=False)
        except FileExistsError:
            _tell(
                f"waiting for another process that compiles {self._path.parent}; where none does, "
                f"a killed start left {self._path}: delete it"
            )
            return False
        return True

    def wait(self) -> None:
        """Wait until torch's file is gone, where there are no locks."""
        while self._path.exists():
            time.sleep(0.1)
        self.note(False)

    def release(self) -> None:
        """Let the next one compile."""
        self._path.unlink(missing_ok=True)
        self._owner.unlink(missing_ok=True)
        self._lock.release()
        self.note(False)


def use_batons(note: Callable[[bool], None]) -> None:
    """Let torch compile under :class:`Baton` in this process.

    Args:
        note: :attr:`Baton.note`.
    """
    from torch.utils import cpp_extension

    Baton.note = staticmethod(note)
    module: Any = cpp_extension
    module.FileBaton = Baton


_SEGMENT = re.compile(r"deepspeed_allreduce_buffer_(\d+)_(.+)_(\d+)_\d+")


def stale_segments(folder: Path = Path("/dev/shm")) -> list[Path]:
    """Shared memory of DeepSpeed that killed runs of this user on this machine left behind.

    It is named after the port at which the ranks met, and that port is held as long as they run.

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
    """Remove what :func:`stale_segments` finds, and say so."""
    paths = stale_segments(folder)
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        _tell(f"removed {len(paths)} segments of shared memory that killed runs left in {folder}")


def _tell(line: str) -> None:
    print(f"tnr: {line}", file=sys.stderr, flush=True)
