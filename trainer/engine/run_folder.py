"""The run folder, which holds all files of a run.

::

    config.json    resolved configuration
    deepspeed.json DeepSpeed's, completed, if there is one
    state.json     running, finished or stopped, and at which step
    starts.jsonl   every start: command, versions, ranks, host
    metrics.jsonl  a record a log line; tensorboard/ has the same
    log/           train.log, stacks of hangs, tables of profiles
    profile/       traces of profiled steps
    checkpoints/   copies/   export/
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Literal

from filelock import FileLock, Timeout

from shards.errors import DataError
from shards.files import read_json, write_json_atomic
from shards.location import shown, shown_text
from shards.tables import shown_names
from trainer.errors import CheckpointError, TrainingError
from trainer.monitor.run_files import CONFIG, STATE, read_state

LOCK_S = 1.0
"""Seconds that a start waits for the lock; ``tnr runs`` holds it briefly to find its holder."""

PACKAGES = ("tiny-newsrec", "torch", "deepspeed", "accelerate", "transformers", "numpy")

State = Literal["running", "finished", "stopped"]


class RunFolder:
    """Files of one run; used only by rank 0, except for the paths."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None
        self._log: IO[str] | None = None
        self._saying = threading.Lock()  # the saving thread prints warnings of its own

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Folder of the model at the end of the run."""
        return self.path / "export"

    @property
    def log(self) -> Path:
        """Folder of ``train.log``, stacks of hangs, tables of profiles."""
        return self.path / "log"

    def copy(self, step: int) -> Path:
        """Return the folder of a step's teacher copy."""
        return self.path / "copies" / f"step_{step:08d}"

    def open(self) -> None:
        """Make the folder, take its lock and open its log.

        Raises:
            TrainingError: Another process trains in the folder, the folder contains other runs, or
                it cannot be written.
        """
        self._check_not_of_others()
        try:
            self.log.mkdir(parents=True, exist_ok=True)
            self._check_files()
            self._take_lock()
            self._log = (self.log / "train.log").open("a", encoding="utf-8")
        except OSError as error:
            raise TrainingError(
                f"run folder {self.path} cannot be written: {error.strerror or error}; "
                "choose another run.dir"
            ) from error

    def _check_not_of_others(self) -> None:
        """Refuse a folder that contains other runs."""
        if (self.path / CONFIG).exists():
            return
        runs = sorted(
            state.parent.name
            for state in self.path.glob(f"*/{STATE}")
            if (state.parent / CONFIG).exists()
        )
        if runs:
            raise TrainingError(
                f"run.dir {self.path} holds other runs ({shown_names(runs)}); expected a folder of "
                f"its own, such as {self.path / 'NAME'}"
            )

    def _check_files(self) -> None:
        """Refuse special files such as FIFOs in place of a run's files."""
        names = (".lock", "config.json", "state.json", "starts.jsonl", "metrics.jsonl")
        for path in (*(self.path / name for name in names), self.log / "train.log"):
            if path.exists() and not path.is_file():
                raise TrainingError(
                    f"run folder {self.path} cannot be used: {path} is not a regular file; remove "
                    "it, or choose another run.dir"
                )

    def _take_lock(self) -> None:
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(timeout=LOCK_S)
        except Timeout as error:
            raise TrainingError(
                f"another process is training in {self.path}; wait for it or stop it, or choose "
                "another run.dir"
            ) from error
        except NotImplementedError:
            # On a file system without locks nothing can be checked, and the run continues.
            self._lock = None

    @property
    def is_open(self) -> bool:
        """Whether this process holds the folder."""
        return self._log is not None

    def close(self) -> None:
        """Release the lock."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def say(self, line: str) -> None:
        """Print a line and write it to ``log/train.log``."""
        with self._saying:
            print(line, flush=True)
            if self._log is not None:
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                self._log.flush()

    def stored_config(self) -> dict[str, Any] | None:
        """Return the stored configuration of the run; None in a folder without a run."""
        path = self.path / "config.json"
        return read_json(path, dict[str, Any]) if path.exists() else None

    def state(self) -> dict[str, Any]:
        """Return the content of ``state.json``; empty if no run has written one."""
        try:
            found = dataclasses.asdict(read_state(self.path))
        except DataError:
            return {}
        unsaid = (None, False)
        return {name: v for name, v in found.items() if not any(v is one for one in unsaid)}

    def write_state(
        self,
        state: State,
        step: int,
        steps: int,
        reason: str | None = None,
        *,
        is_failed: bool = False,
        without_improvement: int | None = None,
    ) -> None:
        """Write the progress of the run, for people and for the pipeline.

        Args:
            state: Current state of the run.
            step: Step of the last checkpoint.
            steps: Steps of the whole run.
            reason: Why the run stopped, or finished before its last step.
            is_failed: Whether the run stopped by an error, not on request.
            without_improvement: Validations in a row without an improvement, if they ended the run.
        """
        entry: dict[str, Any] = {"state": state, "step": step, "steps": steps}
        if reason is not None:
            entry["reason"] = shown_text(reason)
        if is_failed:
            entry["is_failed"] = True
        if without_improvement is not None:
            entry["without_improvement"] = without_improvement
        write_json_atomic(self.path / "state.json", entry)

    def describe(
        self, config: dict[str, Any], deepspeed: dict[str, Any] | None, start: dict[str, Any]
    ) -> None:
        """Write the configuration of the run, and add a line about this start.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            write_json_atomic(self.path / "config.json", config)
            if deepspeed is None:
                (self.path / "deepspeed.json").unlink(missing_ok=True)
            else:
                write_json_atomic(self.path / "deepspeed.json", deepspeed)
            entry = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                **start,
                "command": shlex.join(map(shown, sys.argv)),
                "host": platform.node(),
                "versions": versions(),
                "git": git_revision(),
            }
            with (self.path / "starts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"run folder {self.path} cannot be written: {error.strerror or error}"
            ) from error


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_revision() -> str | None:
    """Return the git revision of this checkout, with ``+`` if edited; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        edited = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if edited else "")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
