"""Keep stamps: one JSON file per step with its command, times and outcome.

A step is done if its stamp says so for the very same command (and the same commands before it) and
if the files that prove the step done still exist. File times decide nothing.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from launchers.steps import Step
from shards.files import read_json, write_json_atomic
from shards.location import shown_text
from trainer.errors import DamageError, DataError, UsageError

_MAX_BYTES = 1 << 20


class State(StrEnum):
    """State of a step."""

    TO_DO = "to do"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    STALE = "stale"


@dataclass(frozen=True)
class Stamp:
    """The record of a step's last attempt."""

    step: str
    digest: str
    state: State
    command: str
    start: float
    end: float | None = None
    exit_code: int | None = None
    job: str | None = None
    """Slurm's id of the job that ran the step; None for a run on this machine."""
    attempt: int = 1
    """Number of the job's start: 0, or the number of requeues."""
    nodes: str | None = None
    """The job's nodes, in Slurm's notation."""

    @property
    def seconds(self) -> float | None:
        """Return the seconds that the attempt took; None while it runs."""
        return None if self.end is None else self.end - self.start

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON content, with readable times beside the exact ones."""
        return {
            "step": self.step,
            "state": str(self.state),
            "command": shown_text(self.command),
            "digest": self.digest,
            "start": self.start,
            "end": self.end,
            "started": _clock(self.start),
            "ended": _clock(self.end),
            "seconds": self.seconds,
            "exit_code": self.exit_code,
            "job": self.job,
            "attempt": self.attempt,
            "nodes": self.nodes,
        }


class Stamps:
    """The stamps and logs of a pipeline: the folder ``<run>/pipeline``."""

    def __init__(self, folder: Path) -> None:
        """Keep the stamps in ``folder``, which the first write makes."""
        self.folder = folder

    def log(self, step: Step) -> Path:
        """Return the path of a step's log."""
        return self.folder / f"{step.name}.log"

    def read(self, step: Step, task: int | None = None) -> Stamp | None:
        """Read the stamp of a step or of one array task; return None without one.

        A damaged stamp, or one of another version, is ignored: the step is not done.
        """
        try:
            return self.check(step, task)
        except DamageError:
            return None

    def check(self, step: Step, task: int | None = None) -> Stamp | None:
        """Read a stamp for a person, who needs to know why a stamp is ignored.

        Raises:
            DamageError: The stamp exists, but its content is not a step's stamp.
        """
        path = self._path(step, task)
        if not path.exists():
            return None
        try:
            return read_json(path, Stamp, limit=_MAX_BYTES)
        except DataError as error:
            raise DamageError(f"{error}; the step counts as not done") from error

    def write(self, step: Step, stamp: Stamp, task: int | None = None) -> None:
        """Replace the stamp of a step, or of one task of an array job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path(step, task), stamp.to_dict())
        if task is not None:  # a stamp of an earlier local run would hide the stamps of the tasks
            self._path(step, None).unlink(missing_ok=True)

    def state(self, step: Step, digest: str) -> State:
        """Return the state of a step for the command that the digest belongs to.

        ``STALE`` means that the step (or a part of it) was made by another command, or from the
        results of another command, and that its output still exists.
        """
        stamp, by_tasks = self.read(step), self._array_state(step, digest)
        if stamp is None or by_tasks is State.DONE:  # a local run may have failed before
            return by_tasks
        if stamp.digest != digest:
            there = step.output is not None and Path(step.output).exists()
            return State.STALE if there else State.TO_DO
        if stamp.state is State.DONE and not proved(step):
            return State.TO_DO
        return stamp.state

    def tasks_left(self, step: Step, digest: str) -> list[int]:
        """Return the unfinished tasks of an array job, for the digest's command."""
        found = [self.read(step, task) for task in range(len(step.array))]
        return [
            task
            for task, stamp in enumerate(found)
            if stamp is None or stamp.digest != digest or stamp.state is not State.DONE
        ]

    def _array_state(self, step: Step, digest: str) -> State:
        """Derive an array's state from its tasks' stamps; all tasks must be done."""
        found = [self.read(step, task) for task in range(len(step.array))]
        states = {s.state if s is not None and s.digest == digest else State.TO_DO for s in found}
        if states == {State.DONE} and proved(step):
            return State.DONE
        for state in (State.FAILED, State.RUNNING, State.STOPPED):
            if state in states:
                return state
        return State.TO_DO

    def _path(self, step: Step, task: int | None) -> Path:
        name = step.name if task is None else f"{step.name}.task-{task}"
        return self.folder / f"{name}.json"


def proved(step: Step) -> bool:
    """Tell whether every path that proves a step done exists."""
    # Only * is a pattern: a run folder may have a name such as runs/[1].
    patterns = (glob.escape(path).replace("[*]", "*") for path in step.proof)
    return all(any(True for _ in glob.iglob(pattern)) for pattern in patterns)  # noqa: PTH207


def refuse_stale(stale: Sequence[Step], remedy: str) -> None:
    """Refuse to continue beside outputs of other commands, which a training would reuse.

    Args:
        stale: Steps whose state is :attr:`State.STALE`.
        remedy: How the caller's user removes or moves the outputs.

    Raises:
        UsageError: A step is stale; the message names all such steps.
    """
    if stale:
        raise UsageError(
            f"{', '.join(step.name for step in stale)}: the output was made by another command, or "
            f"from results of another command, than the configuration now gives. {remedy}; or name "
            "another folder with --out"
        )


def _clock(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
