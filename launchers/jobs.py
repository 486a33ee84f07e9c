"""Which Slurm job runs which step: ids kept in the pipeline's folder, states from ``squeue``."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from launchers.steps import Step
from shards.files import read_json, write_json_atomic
from trainer.errors import DataError, TinyNewsRecError, UsageError

LOCK_S = 1.0
"""How long to wait for another submission to end."""
SQUEUE_S = 60.0
"""How long ``squeue`` may take to answer."""


@dataclass(frozen=True)
class Submitted:
    """A step's last submission."""

    job: str
    """Job id; of an array, the id of the whole array."""
    digest: str
    """The step's digest at that time."""


@dataclass(frozen=True)
class Queued:
    """A job that Slurm has not ended with."""

    states: tuple[str, ...]
    """States of its tasks that are left, such as ``RUNNING``; one for a job without an array."""
    reason: str
    """Why it waits, such as ``Dependency``; ``None`` where it does not."""
    restarts: int
    """How often it was requeued (the task that was requeued most)."""

    @property
    def runs(self) -> bool:
        """Whether any part of it runs."""
        return any(state != "PENDING" for state in self.states)


class JobBook:
    """The ids of submitted jobs: ``jobs.json`` in the pipeline's folder of scripts."""

    def __init__(self, folder: Path) -> None:
        """Read what is known.

        Args:
            folder: The pipeline's folder.
        """
        self._path = folder / "slurm" / "jobs.json"
        self.jobs: dict[str, Submitted] = {}
        if self._path.exists():
            try:
                self.jobs = read_json(self._path, dict[str, Submitted])
            except DataError as error:
                raise TinyNewsRecError(
                    f"{error}; jobs may be queued that are unknown here: look with squeue, then "
                    "delete the file"
                ) from error

    def note(self, step: Step, job: str, digest: str) -> None:
        """Write a submission down at once, so that none is lost if the next one fails."""
        self.jobs[step.name] = Submitted(job, digest)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        entries = {n: {"job": s.job, "digest": s.digest} for n, s in self.jobs.items()}
        write_json_atomic(self._path, entries)

    def queued(self, asked: Mapping[str, Queued]) -> dict[str, str]:
        """Job id of each step whose job is still queued or running."""
        return {name: s.job for name, s in self.jobs.items() if s.job in asked}


@contextlib.contextmanager
def submission(folder: Path) -> Iterator[tuple[JobBook, dict[str, str]]]:
    """Hold a pipeline's jobs while some are submitted: two at once would submit each step twice and
    lose ids of the other.

    Args:
        folder: The pipeline's folder.

    Yields:
        The ids that are known, and the job id of each step that is queued or running.

    Raises:
        TinyNewsRecError: There is no ``sbatch``, or what is queued is unknown.
        UsageError: Another submission is under way.
    """
    if shutil.which("sbatch") is None:
        raise TinyNewsRecError(
            "there is no sbatch on this machine, so nothing was submitted; run this on a login "
            "node of the cluster, look at the scripts with --print, or run here: tnr pipeline run"
        )
    scripts = folder / "slurm"
    scripts.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(scripts / "lock", timeout=LOCK_S):
            book = JobBook(folder)
            yield book, book.queued((ask_squeue() or {}) if book.jobs else {})
    except Timeout as error:
        raise UsageError(f"another submission is under way in {folder}; wait for it") from error


def ask_squeue() -> dict[str, Queued] | None:
    """The user's jobs that are queued or running, by job id; None where there is no Slurm.

    Raises:
        TinyNewsRecError: ``squeue`` failed or did not answer: what is queued is unknown then.
    """
    if shutil.which("squeue") is None:
        return None
    # Every field has room for the longest value: squeue cuts off without a word.
    fields = "ArrayJobID:24,State:24,RestartCnt:12,Reason:80"
    words = ["squeue", "--me", "--array", "--noheader", f"--Format={fields}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SQUEUE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TinyNewsRecError(f"squeue did not answer within {SQUEUE_S:g} s") from error
    if done.returncode != 0:
        raise TinyNewsRecError(f"squeue failed: {' '.join(done.stderr.split())}")
    return read_squeue(done.stdout)


def read_squeue(text: str) -> dict[str, Queued]:
    """Jobs from what ``squeue`` printed: id, state, restarts and reason, one task a line."""
    found: dict[str, Queued] = {}
    for line in text.splitlines():
        words = line.split(None, 3)
        if len(words) < 4:
            continue
        job, state, restarts, reason = words
        before = found.get(job, Queued((), "None", 0))
        count = max(before.restarts, int(restarts) if restarts.isdigit() else 0)
        waits = reason.strip() if state == "PENDING" else before.reason
        found[job] = Queued((*before.states, state), waits, count)
    return found
