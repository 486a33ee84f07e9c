"""What DeepSpeed compiles with, and where it keeps the libraries of a first start. No torch.

They are compiled for the very CPU that compiles them. In a home folder that unlike nodes share, the
library of one node is the illegal instruction of another, so each type of CPU has a folder of its
own.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

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
