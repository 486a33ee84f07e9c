"""Plan of a filling: cells, bytes, free disk, and hours from a short trial of the real teachers."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from shards.progress import format_duration
from trainer.export.folder import Export
from trainer.teacher_server.cells import cells_of_part, free_bytes, mb, missing_cells
from trainer.teacher_server.kinds.base import Signal
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.request import FillRequest, bytes_to_write, list_cells, signals_of
from trainer.teacher_server.teachers import open_teachers

_TRIAL_ROWS = 64


@dataclass(frozen=True)
class TeacherPlan:
    """Work of one teacher's missing cells."""

    teacher: str
    cells: int
    missing_cells: int
    missing_bytes: int
    missing_tokens: int
    tokens_per_s: float
    """Speed on this machine; 0 if nothing is missing."""
    trial_s: float
    trial_articles: int
    hours: float


@dataclass(frozen=True)
class FillPlan:
    """Work of the whole filling, and of each task."""

    teachers: list[TeacherPlan]
    tasks: int
    task_hours: list[float]
    """Hours of each of the N parts."""
    bytes_to_write: int
    free_bytes: int
    device: str
    compute: str
    dtype: str

    def as_json(self) -> dict[str, Any]:
        """Return the plan for ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Format a table and a summary."""
        lines = [f"{'teacher':<44} {'cells':>6} {'to fill':>8} {'bytes':>12} {'time':>14}  trial"]
        for one in self.teachers:
            trial = "nothing to fill"
            if one.missing_cells:
                trial = (
                    f"{one.trial_articles} articles in {one.trial_s:.1f} s, "
                    f"{one.tokens_per_s:,.0f} tokens/s"
                )
            lines.append(
                f"{one.teacher[-44:]:<44} {one.cells:>6} {one.missing_cells:>8} "
                f"{mb(one.missing_bytes):>12} {format_duration(one.hours * 3600):>14}  {trial}"
            )
        total = sum(one.hours for one in self.teachers)
        longest = max(self.task_hours, default=0.0)
        return [
            *lines,
            f"{mb(self.bytes_to_write)} to write, {mb(self.free_bytes)} free; {self.dtype}, "
            f"computed in {self.compute} on {self.device}",
            f"{format_duration(total * 3600)} in all; as {self.tasks} tasks like this process, "
            f"{format_duration(longest * 3600)} for the longest, plus the loading of each teacher",
        ]


def plan(
    teachers: Sequence[str], request: FillRequest, *, tasks: int = 1, trial_s: float = 3.0
) -> FillPlan:
    """Measure every teacher with missing cells for a few seconds, and extrapolate.

    Nothing is written. Impressions, a small part of the work, count as one token each.

    Args:
        teachers: As for :func:`trainer.teacher_server.fill.fill`.
        request: What to fill.
        tasks: N of ``--part I/N``.
        trial_s: Seconds of encoding per teacher, after a first batch for warm-up.
    """
    opened = open_teachers(teachers)
    groups = [signals_of(teacher, request) for teacher in opened]
    signals = [signal for group in groups for signal in group]
    missing = {signal: set(missing_cells(signal.target)) for signal in signals}
    plans = []
    rates: dict[Signal, float] = {}
    for teacher, group in zip(opened, groups, strict=True):
        todo = [(signal, shard) for signal in group for shard in sorted(missing[signal])]
        tried = _trial(teacher, group, request, trial_s) if todo else (0.0, 0, 0.0)
        rate, articles, elapsed = tried
        rates |= dict.fromkeys(group, rate)
        work = sum(signal.work[shard] for signal, shard in todo)
        plans.append(
            TeacherPlan(
                str(teacher.folder),
                sum(len(signal.work) for signal in group),
                len(todo),
                sum(int(signal.sizes[shard]) for signal, shard in todo),
                sum(signal.work[shard] for signal, shard in todo if signal.texts()),
                rate,
                elapsed,
                articles,
                work / rate / 3600 if todo else 0.0,
            )
        )
    cells = list_cells(signals)
    task_hours = [0.0] * tasks
    for part in range(tasks):
        for cell in cells_of_part(cells, part, tasks):
            signal = signals[cell.column]
            if cell.shard in missing[signal]:
                task_hours[part] += cell.work / rates[signal] / 3600
    return FillPlan(
        teachers=plans,
        tasks=tasks,
        task_hours=task_hours,
        bytes_to_write=sum(need.bytes for need in bytes_to_write(signals)),
        free_bytes=free_bytes(request.articles.columns_dir),
        device=request.device,
        compute=request.compute,
        dtype=request.dtype,
    )


@torch.inference_mode()
def _trial(
    teacher: Export, signals: Sequence[Signal], request: FillRequest, seconds: float
) -> tuple[float, int, float]:
    """Measure the encoding of rows drawn evenly over the set, without the first batch.

    Returns tokens/s, articles and seconds.
    """
    model = TeacherModel(teacher, request)
    encoders = [signal for signal in signals if signal.texts()]
    order = np.random.default_rng(0).permutation(request.articles.num_rows)
    tokens = 0

    def count(units: int) -> None:
        nonlocal tokens
        tokens += units

    start, articles, place = 0.0, 0, 0
    while place == 0 or time.perf_counter() - start < seconds:
        rows = np.take(order, np.arange(place, place + _TRIAL_ROWS), mode="wrap")
        for signal in encoders:
            signal.encode(model, rows, count)
        if place == 0:
            start, tokens = time.perf_counter(), 0
        else:
            articles += len(rows)
        place += _TRIAL_ROWS
        if place > _TRIAL_ROWS and place >= 4 * len(order):
            break  # a tiny set: the measurement is good enough
    elapsed = time.perf_counter() - start
    return max(tokens, 1) / max(elapsed, 1e-9), articles, elapsed
