"""Devices by name, and the precisions that they only emulate.

This module imports torch only when needed.

Training, filling, encoding, evaluation, ``--dry-run`` and ``tnr preflight`` call :func:`emulated`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.config.schema import RunConfig
from trainer.errors import ConfigError, UsageError

_CPUINFO = Path("/proc/cpuinfo")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,4})?")
DEVICES = "auto, cpu, cuda or a GPU by its number, such as cuda:1"
"""Names of devices, for messages."""

CPU_FLAGS = {
    "bf16": frozenset({"amx_bf16", "avx512_bf16", "bf16", "svebf16"}),
    "fp16": frozenset({"amx_fp16", "avx512_fp16", "asimdhp"}),
}
"""Flags by which Linux lists a CPU's (x86, Arm) hardware for a precision."""

CPU_FACTORS = ("8 to 17", "5 or more")
"""How many times slower than fp32 a CPU without such hardware trains, and encodes: measured with
AVX2 alone, bf16 at 8 to 17 and 5.4, fp16 at 10.6 and 5.2."""

GPU_FACTORS = ("2 to 4", "2 to 4")
"""The same for a GPU; an estimate."""

GPU_CAPABILITY = {"bf16": 8, "fp16": 6}
"""Lowest compute capability of a GPU that computes in a precision."""


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """A precision for which a device has no instructions."""

    precision: str
    device: str
    """Kind of device: ``CPU`` or ``GPU``."""
    factors: tuple[str, str]
    """Expected slowdown against ``instead`` of training and encoding."""
    instead: str

    def line(self, setting: str) -> str:
        """Format one line for people.

        Args:
            setting: Setting that chose the precision.
        """
        training, encoding = self.factors
        return (
            f"{setting} {self.precision} is only emulated by this {self.device}: expect training "
            f"{training} and encoding {encoding} times slower than {self.instead}; "
            f"set {setting} {self.instead} instead"
        )


def emulated(precision: str, device: str) -> Emulation | None:
    """Describe a precision that a device only emulates.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...

    Returns:
        The description; None if the hardware computes in the precision.
    """
    if precision not in CPU_FLAGS:
        return None
    if device.startswith("cuda"):
        import torch

        if torch.cuda.get_device_capability(device)[0] >= GPU_CAPABILITY[precision]:
            return None
        instead = "fp16" if precision == "bf16" else "fp32"
        return Emulation(precision=precision, device="GPU", factors=GPU_FACTORS, instead=instead)
    if device != "cpu" or cpu_flags() & CPU_FLAGS[precision]:
        return None
    return Emulation(precision=precision, device="CPU", factors=CPU_FACTORS, instead="fp32")


def warn_if_emulated(
    precision: str, device: str, setting: str, say: Callable[[str], None] | None = None
) -> None:
    """Warn on rank 0 if a precision is only emulated.

    Args:
        precision: As in :func:`emulated`.
        device: As in :func:`emulated`.
        setting: Setting that chose the precision.
        say: Receives the line; None prints it to standard error, once.
    """
    found = emulated(precision, device)
    if found is None or (found in _said and say is None) or os.environ.get("RANK", "0") != "0":
        return
    _said.add(found)
    line = found.line(setting)
    if say is None:
        print(f"tnr: warning: {line}", file=sys.stderr, flush=True)
    else:
        say(f"WARNING: {line}")


_said: set[Emulation] = set()


def is_device(name: str) -> bool:
    """Return whether a text is a device name; the device need not exist here."""
    return _DEVICE.fullmatch(name) is not None


def pick_device(asked: str, local_rank: int = 0) -> str:
    """Return the device of a process.

    Args:
        asked: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto``: one GPU per process, numbered as in
            Accelerate, or ``cpu`` without GPUs.
        local_rank: Rank among the processes of this machine.

    Raises:
        UsageError: ``asked`` is not a device name, or this process does not see the device.
    """
    import torch

    if not is_device(asked):
        raise UsageError(f"--device {asked}: expected {DEVICES}")
    gpus = torch.cuda.device_count()
    if asked == "auto":
        return f"cuda:{local_rank % gpus}" if gpus else "cpu"
    if asked != "cpu" and int(asked.partition(":")[2] or 0) >= gpus:
        seen = f"{gpus} GPUs, numbered from 0" if gpus else "no GPU"
        raise UsageError(f"--device {asked}: this process sees {seen}; use auto")
    return asked


def training_device() -> str:
    """Return ``cuda`` if torch sees a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_preset(preset: str | None, run: RunConfig) -> None:
    """Refuse the preset ``cpu_bf16`` on a CPU that only emulates bf16.

    Args:
        preset: Preset of the run; None without one.
        run: Section with ``precision``, and ``allow_emulated``, which forces the preset.

    Raises:
        ConfigError: The CPU only emulates bf16; names the factor and both remedies.
    """
    if preset != "cpu_bf16" or run.allow_emulated or training_device() != "cpu":
        return
    found = emulated(run.precision, "cpu")
    if found is not None:
        raise ConfigError(
            "preset cpu_bf16 is for CPUs with instructions for bf16; this one only emulates "
            f"{found.precision}, {found.factors[0]} times slower than fp32: use preset cpu, or "
            "force it with --run.allow_emulated true"
        )


def cpu_flags() -> frozenset[str]:
    """Return the CPU's features as Linux lists them; empty if unreadable."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(
        word
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
        for word in line.split()
    )
