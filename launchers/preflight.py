"""Check a machine before a run starts: per check, one line with finding and remedy.

The checks need no torch and change nothing permanently. Checks that need torch, data sets or other
ranks are in :mod:`trainer.cli.preflight`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from trainer.engine.extensions import (
    cpu_type,
    extensions_folder,
    find_compiler,
    find_ninja,
    stale_segments,
)
from trainer.engine.rendezvous import check_master_port, is_free
from trainer.errors import TrainingError

PROJECT = "tiny-newsrec"
SHM_BYTES = 64 << 20
"""Smallest /dev/shm that NCCL and Gloo need: Docker's own default."""
DISK_GIB = 5.0
"""Free space below which a run folder is doubtful, if no plan gives a better figure."""


class Outcome(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    outcome: Outcome
    found: str
    """The value that the check found."""
    hint: str = ""
    """What to do about the finding; empty if nothing needs to be done."""

    def line(self) -> str:
        """Return the line for people."""
        then = f"; {self.hint}" if self.hint else ""
        return f"{self.outcome:<4}  {self.name:<12}  {self.found}{then}"


def check_packages(requirements: Sequence[str] | None = None) -> Check:
    """Compare installed versions with the ranges of the project's setup.

    Args:
        requirements: In the form of ``install_requires``; None takes those of the installed
            project.
    """
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires(PROJECT) or []
        except importlib.metadata.PackageNotFoundError:
            return Check(
                name="packages", outcome=Outcome.WARN, found=f"{PROJECT} is not installed",
                hint="versions cannot be compared; pip install -e . in its folder",
            )  # fmt: skip
    wrong, checked = [], 0
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    if wrong:
        return Check(
            name="packages", outcome=Outcome.FAIL, found="; ".join(wrong),
            hint=f"{sys.executable} -m pip install -U {PROJECT}",
        )  # fmt: skip
    return Check(name="packages", outcome=Outcome.OK, found=f"{checked} within their ranges")


def check_compiler_tools(*, is_needed: bool) -> Check:
    """Check that DeepSpeed can compile here.

    Args:
        is_needed: Whether the run compiles: DeepSpeed on CPUs, ZeRO++, ``run.compile``.
    """
    tools = {
        "a C++ compiler (g++)": find_compiler(),
        "ninja (pip install ninja)": find_ninja(),
    }
    missing = [name for name, path in tools.items() if path is None]
    if not missing:
        return Check(name="compiler", outcome=Outcome.OK, found=", ".join(map(str, tools.values())))
    return Check(
        name="compiler", outcome=Outcome.FAIL if is_needed else Outcome.WARN,
        found=f"no {' and no '.join(missing)}",
            hint="install it: DeepSpeed compiles at its first start on CPUs, torch.compile always",
    )  # fmt: skip


def check_extensions(environment: Mapping[str, str] = os.environ) -> Check:
    """Check that the folder of compiled libraries is writable and has no stale lock.

    Args:
        environment: Mapping with ``TORCH_EXTENSIONS_DIR``.
    """
    folder = extensions_folder(environment)
    found = f"{folder} ({cpu_type()})"
    locks = sorted(str(path) for path in folder.glob("*/lock"))
    locks += sorted(str(path) for path in folder.glob("*/*/lock"))
    if locks:
        return Check(
            name="extensions", outcome=Outcome.WARN, found=f"lock file {', '.join(locks)}",
            hint="another run is compiling right now, or a killed run left the file; 'tnr train' "
            "removes a leftover at its next start, but other programs wait for it: delete it",
        )  # fmt: skip
    refusal = _try_writing(folder)
    if refusal:
        return Check(
            name="extensions", outcome=Outcome.FAIL, found=f"{folder}: {refusal}",
            hint="set TORCH_EXTENSIONS_DIR to a writable folder",
        )  # fmt: skip
    return Check(name="extensions", outcome=Outcome.OK, found=found)


def check_run_folder(folder: Path, needed: int | None = None) -> list[Check]:
    """Check that a run folder has space and allows writing, renaming, syncing and locking.

    Args:
        folder: The run folder, or the folder that will hold the run folder.
        needed: Bytes that the run will write; None if the number is unknown.
    """
    refusal = _try_writing(folder)
    if refusal:
        return [
            Check(
                name="run folder", outcome=Outcome.FAIL, found=f"{folder}: {refusal}",
                hint="correct its permissions or file system, or set another folder with run.dir",
            )
        ]  # fmt: skip
    checks = [
        Check(
            name="run folder", outcome=Outcome.OK,
            found=f"{folder}: written, renamed, synced, locked",
        )
    ]  # fmt: skip
    free = shutil.disk_usage(_existing(folder)).free
    wanted = int(DISK_GIB * 2**30) if needed is None else needed
    found = f"{free / 1e9:.1f} GB free"
    if needed is not None:
        found += f", {needed / 1e9:.2f} GB needed"
    if free >= wanted:
        checks.append(Check(name="disk", outcome=Outcome.OK, found=found))
    else:
        outcome = Outcome.WARN if needed is None else Outcome.FAIL
        hint = "free space, keep fewer checkpoints (run.keep_checkpoints), or set another run.dir"
        checks.append(Check(name="disk", outcome=outcome, found=found, hint=hint))
    return checks


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Check that the ranks of one machine have enough shared memory.

    Args:
        folder: Mount point of the shared memory.
    """
    if not folder.is_dir():
        return Check(
            name="shm", outcome=Outcome.WARN, found=f"there is no {folder}",
            hint="ranks of one machine need shared memory; mount it (--shm-size in a container)",
        )  # fmt: skip
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**20:,.0f} MiB free in {folder}"
    if stale := stale_segments(folder):
        found += f", {len(stale)} segments of killed runs, which the next start removes"
    if free < SHM_BYTES:
        hint = f"{SHM_BYTES >> 20} MiB are needed; delete leftovers, or raise --shm-size"
        return Check(name="shm", outcome=Outcome.WARN, found=found, hint=hint)
    return Check(name="shm", outcome=Outcome.OK, found=found)


def check_host(name: str | None = None) -> Check:
    """Check that this machine's name resolves to an address, as other nodes need it.

    Args:
        name: Host name; None takes this machine's.
    """
    name = socket.gethostname() if name is None else name
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return Check(
            name="host name", outcome=Outcome.FAIL, found=f"{name} does not resolve: {error}",
            hint="add it to DNS or /etc/hosts on every node",
        )  # fmt: skip
    addresses = ", ".join(sorted({str(address[4][0]) for address in found}))
    return Check(name="host name", outcome=Outcome.OK, found=f"{name} is {addresses}")


def check_port(environment: Mapping[str, str] = os.environ) -> Check:
    """Check that MASTER_PORT, if set, is free, unless the ranks hold the port already.

    Args:
        environment: Mapping with ``MASTER_PORT``.
    """
    port = environment.get("MASTER_PORT", "")
    if not port.isdigit():
        return Check(
            name="port", outcome=Outcome.OK, found="MASTER_PORT is not set: a free port is used"
        )
    if "RANK" in environment:
        try:
            check_master_port(environment)
        except TrainingError as error:
            return Check(name="port", outcome=Outcome.FAIL, found=str(error))
        return Check(name="port", outcome=Outcome.OK, found=f"{port}: the ranks meet there")
    if is_free(int(port)):
        return Check(name="port", outcome=Outcome.OK, found=f"{port} is free")
    return Check(
        name="port", outcome=Outcome.FAIL, found=f"{port} is taken by another program",
        hint=f"end it ('ss -ltnp sport = :{port}' shows it), or set another MASTER_PORT",
    )  # fmt: skip


def check_slurm() -> Check:
    """Ask Slurm for its partitions, if Slurm is installed."""
    program = shutil.which("sinfo")
    if program is None:
        return Check(
            name="slurm", outcome=Outcome.OK, found="not installed; only needed to submit jobs"
        )
    try:
        done = subprocess.run(
            [program, "--noheader", "--format=%P %a %D"],
            capture_output=True, text=True, timeout=15, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(
            name="slurm", outcome=Outcome.WARN, found="sinfo did not answer within 15 s",
            hint="is slurmctld running?",
        )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        return Check(
            name="slurm", outcome=Outcome.WARN, found=f"sinfo failed: {said}",
            hint="jobs cannot be submitted from here until it answers",
        )  # fmt: skip
    partitions = "; ".join(line.strip() for line in done.stdout.splitlines()) or "no partitions"
    return Check(name="slurm", outcome=Outcome.OK, found=partitions)


def _try_writing(folder: Path) -> str:
    """Try the file operations of a checkpoint; return the refused one, or an empty string.

    If the folder does not exist, the trial uses the nearest existing parent.
    """
    import fcntl

    trial = _existing(folder) / f".preflight-{os.getpid()}-{secrets.token_hex(4)}"
    doing = "a folder cannot be made"
    try:
        trial.mkdir()
        doing = "a file cannot be written and synced"
        with (trial / "first").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            doing = "a file cannot be locked"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        doing = "a file cannot be renamed over another"
        (trial / "second").write_bytes(b"")
        (trial / "first").replace(trial / "second")
        if (trial / "second").stat().st_size != 4096:
            return "a renamed file is not seen under its new name"
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "")
        return f"{doing}: {error.strerror or error} ({code})"
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return ""


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
