"""Typed reading of a run folder's files, for commands that only look at runs.

Files are never read in full. A training run writes these files while they are read, and a killed
run leaves an incomplete line: such a line is ignored. A file of another form is an error that names
the file.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shards.errors import DataError
from shards.files import open_regular, read_json
from shards.location import shown_line

CONFIG, STATE, METRICS, STARTS = "config.json", "state.json", "metrics.jsonl", "starts.jsonl"
_CHECKPOINT = re.compile(r"step_([0-9]{8,18})")
_TAIL_BYTES = 1 << 16
_MAX_STATE_BYTES = 1 << 20
_MAX_STARTS_BYTES, _BLOCK_BYTES = 1 << 26, 1 << 20

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """``state.json``: what a run is doing, or how it ended."""

    state: Literal["running", "finished", "stopped"]
    step: Count
    """Step of the last checkpoint."""
    steps: Count
    reason: str | None = None
    is_failed: bool = False
    without_improvement: Count | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """``config.json``, as far as a list of runs shows it."""

    task: str


def read_state(folder: Path) -> RunState:
    """Read a run's ``state.json``; its reason is safe to print.

    Raises:
        DataError: The file is missing or not valid.
    """
    state = read_json(folder / STATE, RunState, limit=_MAX_STATE_BYTES)
    return state if state.reason is None else replace(state, reason=shown_line(state.reason))


def read_settings(folder: Path) -> RunSettings:
    """Read a run's ``config.json``.

    Raises:
        DataError: The file is missing or not valid.
    """
    return read_json(folder / CONFIG, RunSettings)


def last_entries(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects at the end of a file of lines, if any.

    Raises:
        DataError: The file is not regular, or unreadable.
    """
    if not path.exists():
        return []
    with open_regular(path) as file:
        try:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).split(b"\n")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    entries = [parse_line(line) for line in lines]
    return [entry for entry in entries if entry is not None]


def count_starts(folder: Path) -> int:
    """Count the starts of a run in the first 64 MiB of ``starts.jsonl``.

    A start takes one or two kilobytes, so 64 MiB hold tens of thousands of starts; beyond that, the
    number is a lower bound.

    Raises:
        DataError: The file is not regular, or unreadable.
    """
    path, count, before = folder / STARTS, 0, b""
    if not path.exists():
        return 0
    with open_regular(path) as file:
        try:
            for _ in range(_MAX_STARTS_BYTES // _BLOCK_BYTES):
                block = file.read(_BLOCK_BYTES)
                if not block:
                    break
                count += (before + block).count(b"}\n")
                before = block[-1:]
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return count


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object; None if it is incomplete or damaged."""
    try:
        # Not msgspec: a loss that is not finite is written as NaN, which JSON does not allow.
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def as_record(entry: dict[str, Any]) -> dict[str, float] | None:
    """Return a line of ``metrics.jsonl`` as numbers by name; None without a step.

    Values that are not numbers are left out.
    """
    if type(entry.get("step")) is not int or not 0 <= entry["step"] < 1 << 63:
        return None
    record: dict[str, float] = {"step": entry["step"]}
    for name, value in entry.items():
        if name != "step" and type(value) in (int, float) and abs(value) < 1 << 1000:
            record[name] = float(value)
        elif type(value) is float:
            record[name] = value  # NaN or infinite, as measured
    return record


def last_record(folder: Path, needed: str = "step") -> dict[str, float] | None:
    """Return a run's last record with a number of this name; None without one.

    Raises:
        DataError: ``metrics.jsonl`` is not a regular file, or is unreadable.
    """
    records = map(as_record, reversed(last_entries(folder / METRICS)))
    return next((one for one in records if one is not None and needed in one), None)


def reached_step(folder: Path, state: RunState, record: dict[str, float] | None) -> int:
    """Return a run's newest step by its state, its records and its checkpoints.

    A run writes a record every few steps and its state after a checkpoint: if it was killed in
    between, either may be behind.
    """
    try:
        names = [_CHECKPOINT.fullmatch(path.name) for path in (folder / "checkpoints").iterdir()]
    except OSError:
        names = []  # the run has no checkpoints yet
    steps = [int(name[1]) for name in names if name is not None]
    return max(state.step, 0 if record is None else int(record["step"]), *steps, 0)
