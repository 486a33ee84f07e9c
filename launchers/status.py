"""Show each step's job, state, progress, time and log: ``tnr pipeline status``.

Stamps say how steps ended, ``squeue`` (asked once, if Slurm is installed) says what is queued or
running, and a training step's run folder says how far the training is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.jobs import JobBook, Queued, Submitted
from launchers.local import is_running
from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Step
from shards.location import shown_line, shown_text
from trainer.errors import DamageError, DataError, TinyNewsRecError
from trainer.monitor.run_files import STATE, last_record, reached_step, read_state


@dataclass(frozen=True)
class Row:
    """One step of the table."""

    step: str
    job: str | None
    """Slurm's job id; None for a step that ran here or has not run."""
    state: str
    """``to do``, ``queued``, ``running``, ``done``, ``stopped``, ``failed``, ``cancelled``,
    ``stale``, or ``damaged`` (an unreadable stamp)."""
    reason: str | None
    """Why a queued job waits, or what is damaged."""
    requeued: int
    """How often the job was requeued."""
    progress: str | None
    """Steps and loss of a training, or finished tasks of an array."""
    seconds: float | None
    """Duration of the last attempt, up to now if the step is running."""
    log: str | None
    """The log of the newest job, else of the local run."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON content."""
        return dataclasses.asdict(self)


def status_rows(
    steps: Sequence[Step],
    known: Mapping[str, str],
    folder: Path,
    asked: Mapping[str, Queued] | None,
) -> list[Row]:
    """Make the rows of all steps.

    Args:
        steps: The pipeline's steps.
        known: The steps' digests.
        folder: The pipeline's folder of stamps.
        asked: Answer of ``squeue``; None if it could not be asked, and only stamps count.
    """
    here = is_running(folder)
    try:
        jobs = JobBook(folder).jobs
    except TinyNewsRecError:
        jobs = {}  # the caller has already reported that squeue did not answer
    rows = []
    for step in steps:
        try:
            rows.append(_row(step, known[step.name], Stamps(folder), jobs, asked, here))
        except DamageError as error:
            rows.append(_damaged_row(step, str(error)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format rows as an aligned table."""
    cells = [["step", "job", "state", "progress", "seconds", "log"]]
    for row in rows:
        state = row.state if row.reason is None else f"{row.state} ({row.reason})"
        if row.requeued:
            state += f", requeued {row.requeued} time{'s' if row.requeued > 1 else ''}"
        took = "" if row.seconds is None else f"{row.seconds:,.1f}"
        texts = (row.step, row.job or "", state, row.progress or "", took, row.log or "")
        # A stamp or squeue may hold any text.
        cells.append([shown_line(cell) for cell in texts])
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [
            c.rjust(w) if n == 4 else c.ljust(w)
            for n, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _row(
    step: Step,
    digest: str,
    stamps: Stamps,
    jobs: Mapping[str, Submitted],
    asked: Mapping[str, Queued] | None,
    here: bool,
) -> Row:
    submitted = jobs.get(step.name)
    job = None if submitted is None else submitted.job
    queued = None if asked is None or job is None else asked.get(job)
    written = [s for task in _tasks(step) if (s := stamps.check(step, task)) is not None]
    latest = max(written, key=lambda stamp: stamp.start, default=None)
    state, reason = str(stamps.state(step, digest)), None
    if queued is not None:
        state = "running" if queued.runs else "queued"
        reason = None if queued.runs else queued.reason
    elif asked is not None and job is not None:
        state = _ended(state, latest)
    elif state == State.RUNNING and latest is not None and latest.job is None and not here:
        state = str(State.STOPPED)  # the pipeline that wrote the stamp no longer runs
    requeues = [stamp.attempt - 1 for stamp in written if stamp.job is not None]
    if queued is not None:
        requeues.append(queued.restarts)
    return Row(
        step=step.name,
        job=job,
        state=state,
        reason=reason,
        requeued=max(requeues, default=0),
        progress=_progress(step, digest, stamps),
        seconds=_seconds(latest, state),
        log=_log(step, stamps),
    )


def _damaged_row(step: Step, reason: str) -> Row:
    return Row(
        step=step.name,
        job=None,
        state="damaged",
        reason=shown_text(reason),
        requeued=0,
        progress=None,
        seconds=None,
        log=None,
    )


def _tasks(step: Step) -> list[int | None]:
    return [None, *range(len(step.array))]


def _ended(state: str, latest: Stamp | None) -> str:
    """Return the state of a step whose job Slurm no longer knows.

    A job that was cancelled while it waited, or was killed, wrote no last stamp. A job that stopped
    after its last requeue did write one.
    """
    if state in (State.DONE, State.STOPPED, State.FAILED, State.STALE):
        return state
    by_job = latest is None or latest.job is not None
    return "cancelled" if by_job else state


def _progress(step: Step, digest: str, stamps: Stamps) -> str | None:
    if step.array:
        whole = stamps.state(step, digest) is State.DONE
        left = 0 if whole else len(stamps.tasks_left(step, digest))
        return f"{len(step.array) - left}/{len(step.array)} tasks"
    if step.command[1] != "train" or step.output is None:
        return None
    run = Path(step.output)
    if not (run / STATE).exists():
        return None  # the training has not begun
    try:
        state, record = read_state(run), last_record(run, "train/loss")
        reached = reached_step(run, state, last_record(run))
    except DataError as error:
        return f"unknown: {shown_text(error)}"
    loss = "" if record is None else f", loss {record['train/loss']:.4f}"
    return f"step {reached}/{state.steps}{loss}"


def _seconds(latest: Stamp | None, state: str) -> float | None:
    if latest is None:
        return None
    if latest.end is None:
        return time.time() - latest.start if state == State.RUNNING else None
    return latest.seconds


def _log(step: Step, stamps: Stamps) -> str | None:
    """Return the log of the newest job (ids rise), else that of a local run."""
    # A step's name may be a prefix of another's, so only an id may follow the name.
    found = {}
    for path in stamps.folder.glob(f"{step.name}-[0-9]*.slurm.log"):
        ids = path.name[len(step.name) + 1 :].split(".")[0].split("_")
        if all(part.isdigit() for part in ids):
            found[tuple(map(int, ids))] = path
    if found:
        return str(found[max(found)])
    here = stamps.log(step)
    return str(here) if here.is_file() else None
