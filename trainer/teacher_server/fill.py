"""Filling teacher columns: one teacher in memory at a time, one committed cell (teacher, shard)
after another.

A cell that is there already is skipped, so filling again after a kill, or beside another process,
only does what is missing.
"""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shards.clicks import ClickColumn
from shards.columns import ColumnWriter
from shards.files import atomic_file
from shards.reader import ShardSet
from trainer.export.folder import Export, load_export
from trainer.teacher_server import identity
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.signals import EMPTY
from trainer.teacher_server.storage import store, store_plain

Report = Callable[[str], None]


@dataclass(frozen=True)
class FillRequest:
    """What to fill: the same for every teacher."""

    articles: ShardSet
    impressions: ShardSet | None
    """Impression set of stage II; None for stage I."""
    dtype: str = "float16"
    """``float16``, ``float32`` or ``int8``: how vectors and scores are stored."""
    compute: str = "fp32"
    """``fp32`` or ``bf16``: precision of the teacher's forward pass."""
    batch_tokens: int = 16384
    """Tokens of a forward pass, padding included."""
    device: str = "cpu"
    """Where the teacher runs."""

    @property
    def stage(self) -> int:
        """1 or 2."""
        return 1 if self.impressions is None else 2


class Target(NamedTuple):
    """A column set that a teacher's outputs go to; nothing is made on disk by naming it."""

    shard_set: ShardSet
    name: str
    made_from: dict[str, Any]


def targets(teacher: Export, request: FillRequest) -> list[Target]:
    """The column sets of a teacher's outputs, in the order in which they are filled."""
    articles, impressions = request.articles, request.impressions
    dtype, compute = request.dtype, request.compute
    if impressions is None:
        made_from = identity.text_identity(teacher, articles, dtype, compute)
        return [Target(articles, identity.TEXT, made_from)]
    news = identity.news_identity(teacher, articles, dtype, compute)
    clicks = identity.clicks_identity(teacher, articles, impressions, dtype, compute)
    return [
        Target(articles, identity.NEWS, news),
        Target(impressions, identity.CLICKS, clicks),
    ]


def fill(teachers: Sequence[str | Path], request: FillRequest, report: Report = print) -> int:
    """Fill the columns of all teachers, one after the other.

    Args:
        teachers: Exported models.
        request: Shard sets and precision.
        report: Gets one line a cell and one a teacher.

    Returns:
        How many cells were computed (not skipped).

    Raises:
        ModelError: A teacher is no export, or of the wrong kind for the stage.
        ColumnError: A teacher gave a value that is not finite; the rows are named.
    """
    opened = [load_export(teacher) for teacher in teachers]
    planned = [targets(teacher, request) for teacher in opened]
    all_writers = [[ColumnWriter(*target) for target in of_one] for of_one in planned]
    missing = sum(len(writer.missing()) for writers in all_writers for writer in writers)
    clock = _Clock(missing, report)
    for number, (teacher, writers) in enumerate(zip(opened, all_writers, strict=True), start=1):
        left = sum(len(writer.missing()) for writer in writers)
        report(f"teacher {number} of {len(opened)}: {teacher.folder}, {left} cells to fill")
        if left:
            _fill_one(teacher, writers, request, clock)
    return missing


def _fill_one(
    teacher: Export, writers: list[ColumnWriter], request: FillRequest, clock: "_Clock"
) -> None:
    model = TeacherModel(
        teacher,
        request.articles,
        device=request.device,
        compute=request.compute,
        batch_tokens=request.batch_tokens,
    )
    dtype = request.dtype
    with torch.inference_mode():
        if request.impressions is None:
            _fill_text(model, writers[0], request.articles, dtype, clock)
        else:
            news, clicks = writers
            _fill_news(model, news, request.articles, dtype, clock)
            if clicks.missing():
                _fill_clicks(model, clicks, request, dtype, clock)


def _fill_text(
    model: TeacherModel, writer: ColumnWriter, articles: ShardSet, dtype: str, clock: "_Clock"
) -> None:
    for shard in writer.missing():
        rows = shard_rows(articles, shard)
        title, body = model.titles(rows), model.bodies(rows)
        writer.write(shard, store("title", title, dtype) | store("body", body, dtype))
        clock.cell(len(rows), "articles")


def _fill_news(
    model: TeacherModel, writer: ColumnWriter, articles: ShardSet, dtype: str, clock: "_Clock"
) -> None:
    if not (writer.folder / EMPTY).is_file():
        buffer = io.BytesIO()
        np.save(buffer, store_plain(model.empty_title(), dtype), allow_pickle=False)
        with atomic_file(writer.folder / EMPTY) as file:
            file.write(buffer.getvalue())
    for shard in writer.missing():
        rows = shard_rows(articles, shard)
        writer.write(shard, store("news", model.titles(rows), dtype))
        clock.cell(len(rows), "articles")


def _fill_clicks(
    model: TeacherModel,
    writer: ColumnWriter,
    request: FillRequest,
    dtype: str,
    clock: "_Clock",
) -> None:
    """Users and scores are computed from vectors at full precision, not from the stored ones."""
    assert request.impressions is not None
    clicks = ClickColumn.open(request.impressions)
    news_NE = model.titles(np.arange(request.articles.num_rows))
    for shard in writer.missing():
        rows = shard_rows(request.impressions, shard)
        users, scores, offsets = model.impressions(news_NE, clicks, rows)
        cell = {
            **store("user", users, dtype),
            "scores.values": store_plain(scores, dtype),
            "scores.offsets": offsets,
        }
        writer.write(shard, cell)
        clock.cell(len(rows), "impressions")


def shard_rows(shard_set: ShardSet, shard: int) -> np.ndarray:
    """Row numbers of one shard, int64."""
    return np.arange(shard_set.shard_starts[shard], shard_set.shard_starts[shard + 1])


class _Clock:
    """One line a committed cell: how many are done, how fast, and how long the rest will take."""

    def __init__(self, cells: int, report: Report) -> None:
        self.cells = cells
        self.report = report
        self.done = 0
        self.start = self.last = time.monotonic()

    def cell(self, rows: int, unit: str) -> None:
        now = time.monotonic()
        self.done += 1
        rate = rows / max(now - self.last, 1e-9)
        left = (now - self.start) / self.done * (self.cells - self.done)
        self.last = now
        self.report(
            f"  cell {self.done} of {self.cells}: {rows} {unit}, {rate:,.0f} {unit}/s, "
            f"{left:.0f} s left"
        )
