"""Track which Slurm job runs which step: ids in the pipeline's folder, states from ``squeue``."""

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
    """Job id; for an array job, the id of the whole array."""
    digest: str
    """Digest of the step when the job was submitted."""


@dataclass(frozen=True)
class Queued:
    """A job that is queued or running in Slurm."""

    states: tuple[str, ...]
    """States of the unfinished tasks, such as ``RUNNING``; one state for a job without an array."""
    reason: str
    """Reason for waiting, such as ``Dependency``; None for a job that does not wait."""
    restarts: int
    """Number of requeues; for an array, the highest number of any task."""

    @property
    def runs(self) -> bool:
        """Tell whether any task of the job runs."""
        return any(state != "PENDING" for state in self.states)


class JobBook:
    """The ids of submitted jobs: ``jobs.json`` in the pipeline's folder of scripts."""

    def __init__(self, folder: Path) -> None:
        """Read the known job ids.

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
                    f"{error}; some queued jobs may be unknown here: look with squeue, then "
                    "delete the file"
                ) from error

    def note(self, step: Step, job: str, digest: str) -> None:
        """Save the id of a submission at once, so that no later failure loses it."""
        self.jobs[step.name] = Submitted(job, digest)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        entries = {n: {"job": s.job, "digest": s.digest} for n, s in self.jobs.items()}
        write_json_atomic(self._path, entries)

    def queued(self, asked: Mapping[str, Queued]) -> dict[str, str]:
        """Return the job id of each step whose job is still queued or running."""
        return {name: s.job for name, s in self.jobs.items() if s.job in asked}


@contextlib.contextmanager
def submission(folder: Path) -> Iterator[tuple[JobBook, dict[str, str]]]:
    """Lock a pipeline's jobs while some are submitted.

    Two submissions at once would submit each step twice and lose job ids.

    Args:
        folder: The pipeline's folder.

    Yields:
        The job book, and the job id of each step that is queued or running.

    Raises:
        TinyNewsRecError: ``sbatch`` is missing, or ``squeue`` failed.
        UsageError: Another submission is running.
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
        raise UsageError(f"another submission is running in {folder}; wait for it") from error


def ask_squeue() -> dict[str, Queued] | None:
    """Ask for the user's queued and running jobs, by job id; return None without Slurm.

    Raises:
        TinyNewsRecError: ``squeue`` failed or did not answer, so the queue is unknown.
    """
    if shutil.which("squeue") is None:
        return None
    # Every field is wide enough for its longest value: squeue truncates silently.
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
    """Parse the output of ``squeue``: id, state, restarts and reason, one task per line."""
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
