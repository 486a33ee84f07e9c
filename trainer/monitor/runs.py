"""What has run: run folders, their state and their last numbers, read without torch."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shards.errors import DataError
from shards.files import read_json

CONFIG, STATE, METRICS, STARTS = "config.json", "state.json", "metrics.jsonl", "starts.jsonl"
_TAIL_BYTES = 1 << 16
_SHOWN = ("train/accuracy", "speed/samples_per_s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, as ``tnr runs`` lists it."""

    name: str
    """The folder, below the one that was searched."""
    task: str
    state: str
    """``running``, ``finished``, ``stopped`` (go on with the same command), ``failed``, or
    ``dead``: it says that it runs, but no process holds it."""
    step: int
    steps: int
    loss: float | None
    metrics: dict[str, float]
    """All numbers of the last record."""
    age_s: float | None
    """Seconds since the last record was written, by the clock of the machine that wrote it."""
    starts: int
    """How often it was started."""
    host: str | None
    reason: str | None
    """Why it stopped or failed."""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """The run folders in and below some folders, by name. Nothing inside a run is looked into."""
    return [
        _read(folder, str(folder.relative_to(root)) if folder != root else folder.name)
        for root in roots
        for folder in _folders(root)
    ]


def table(runs: Sequence[Run]) -> list[str]:
    """Aligned lines, the first with the names of the columns."""
    rows = [("run", "task", "state", "step", "loss", "accuracy", "samples/s", "age", "starts")]
    for run in runs:
        shown = [run.metrics.get(name) for name in _SHOWN]
        rows.append(
            (
                run.name,
                run.task,
                run.state,
                f"{run.step}/{run.steps}",
                "" if run.loss is None else f"{run.loss:.4g}",
                "" if shown[0] is None else f"{shown[0]:.4g}",
                "" if shown[1] is None else f"{shown[1]:,.1f}",
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
    if (root / CONFIG).is_file() and (root / STATE).is_file():
        yield root
        return
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return  # not a folder, or one that may not be read
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _folders(entry)


def _read(folder: Path, name: str) -> Run:
    config, state = _json(folder / CONFIG), _json(folder / STATE)
    record = _last(folder / METRICS)
    starts = _lines(folder / STARTS)
    metrics = {
        key: float(value)
        for key, value in record.items()
        if "/" in key and isinstance(value, int | float)
    }
    return Run(
        name=name,
        task=str(config.get("task", "?")),
        state=_state(folder, state),
        step=max(int(state.get("step", 0)), int(record.get("step", 0))),
        steps=int(state.get("steps", 0)),
        loss=metrics.get("train/loss"),
        metrics=metrics,
        age_s=time.time() - float(record["time"]) if "time" in record else None,
        starts=len(starts),
        host=starts[-1].get("host") if starts else None,
        reason=state.get("reason"),
    )


def _state(folder: Path, state: dict[str, Any]) -> str:
    said = str(state.get("state", "?"))
    if said == "stopped" and state.get("is_failed"):
        return "failed"
    if said == "running" and not _is_held(folder):
        return "dead"
    return said


def _is_held(folder: Path) -> bool:
    """Whether a process trains in the folder; a start that meets this probe waits for it."""
    path = folder / ".lock"
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return True  # a file system without locks, or one that may not be written: believe it
    lock.release()
    return False


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file of lines, without what is half written."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the first may be cut, the last half written
        if isinstance(entry, dict):
            found.append(entry)
    return found


def _last(path: Path) -> dict[str, Any]:
    records = [record for record in _lines(path) if "step" in record]
    return records[-1] if records else {}


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
