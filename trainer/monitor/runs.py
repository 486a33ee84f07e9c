"""List of runs: run folders, their state and their last metrics, read without torch."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shards.errors import DataError
from shards.location import shown_line
from trainer.monitor.run_files import (
    CONFIG,
    STARTS,
    STATE,
    RunState,
    count_starts,
    last_entries,
    last_record,
    reached_step,
    read_settings,
    read_state,
)

STATES = ("running", "finished", "stopped", "failed", "dead", "damaged")
_SHOWN = ("train/accuracy", "speed/samples_per_s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, as ``tnr runs`` lists it."""

    name: str
    """Folder of the run, relative to the searched folder."""
    task: str
    state: str
    """``running``, ``finished``, ``stopped`` (the same command continues), ``failed``, ``dead`` (by
    its state it runs, but no process holds it) or ``damaged`` (``reason`` names the file)."""
    step: int
    steps: int
    loss: float | None
    metrics: dict[str, float]
    """All metrics of the last record."""
    age_s: float | None
    """Seconds since the last record was written, by the clock of the machine that wrote it."""
    starts: int
    """How often the run was started; a lower bound if ``starts.jsonl`` has more than 64 MiB."""
    host: str | None
    reason: str | None
    """Why the run stopped or failed, or which of its files is unreadable."""


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """Find the run folders in and below some folders, sorted by name."""
    return [
        _read(folder, str(folder.relative_to(root)) if folder != root else folder.name)
        for root in roots
        for folder in _folders(root)
    ]


def table(runs: Sequence[Run]) -> list[str]:
    """Format aligned lines, the first with the names of the columns."""
    rows = [("run", "task", "state", "step", "loss", "accuracy", "samples/s", "age", "starts")]
    for run in runs:
        numbers = [run.metrics.get(name) for name in _SHOWN]
        rows.append(
            (
                shown_line(run.name),
                run.task,
                run.state,
                f"{run.step}/{run.steps}",
                "" if run.loss is None else f"{run.loss:.4g}",
                "" if numbers[0] is None else f"{numbers[0]:.4g}",
                "" if numbers[1] is None else f"{numbers[1]:,.1f}",
                "" if run.age_s is None else _age(run.age_s),
                str(run.starts),
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if n < 3 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _folders(root: Path) -> Iterator[Path]:
    left = [root]
    while left:
        folder = left.pop()
        # Something other than a file in their place makes the run damaged, not absent.
        if os.path.exists(folder / CONFIG) and os.path.exists(folder / STATE):  # noqa: PTH110
            yield folder
            continue
        try:
            entries = sorted(folder.iterdir(), reverse=True)
        except OSError:
            continue  # not a folder, or an unreadable one
        left += [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink()
        ]


def _read(folder: Path, name: str) -> Run:
    try:
        settings, state = read_settings(folder), read_state(folder)
        record, starts = last_record(folder), count_starts(folder)
        last = last_entries(folder / STARTS)
    except DataError as error:
        return Run(
            name=name,
            task="?",
            state="damaged",
            step=0,
            steps=0,
            loss=None,
            metrics={},
            age_s=None,
            starts=0,
            host=None,
            reason=shown_line(error),
        )
    entries = (record or {}).items()
    metrics = {shown_line(key): value for key, value in entries if "/" in key}
    host = last[-1].get("host") if last else None
    return Run(
        name=name,
        task=shown_line(settings.task),
        state=_state(folder, state),
        step=reached_step(folder, state, record),
        steps=state.steps,
        loss=metrics.get("train/loss"),
        metrics=metrics,
        age_s=None if record is None or "time" not in record else time.time() - record["time"],
        starts=starts,
        host=shown_line(host) if isinstance(host, str) else None,
        reason=state.reason,
    )


def _state(folder: Path, state: RunState) -> str:
    if state.state == "stopped" and state.is_failed:
        return "failed"
    if state.state == "running" and not _is_held(folder):
        return "dead"
    return state.state


def _is_held(folder: Path) -> bool:
    """Return whether a process trains in the folder; starts wait for this probe."""
    path = folder / ".lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return True  # a file system without locks, or read-only: believe the state
    lock.release()
    return False


def _age(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
