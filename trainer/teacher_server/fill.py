"""Filling teacher columns: one teacher in memory at a time, one committed cell after another.

A cell that is there already is skipped, so filling again after a kill, or beside other processes,
only does what is missing.

In stage II, users and scores are computed from news vectors in float32. These are kept in a working
column while a teacher's cells are filled: every process that needs them takes what is there and
computes what is missing, a cell at a time in an order of its own, and commits it for the others. So
the news of a corpus is encoded once for all tasks of an array, no task waits for another, and any
of them may be killed. Whoever finds the teacher complete removes the working column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from shards.cells import data_path, open_cell
from shards.clicks import ClickColumn
from shards.column_folders import remove_folder
from shards.columns import ColumnReader, ColumnWriter, describe
from shards.histories import holders
from shards.ragged import offsets_from_lengths
from shards.reader import ShardSet
from shards.stopping import Pace
from trainer.engine.signals import StopRequest
from trainer.errors import ColumnError, DamageError, ModelError, StopForRequeue
from trainer.export.folder import Export, load_export
from trainer.teacher_server.empty import read_empty, write_empty
from trainer.teacher_server.identity import CLICKS, EXACT, NEWS, TEXT, news_identity
from trainer.teacher_server.outputs import Count, TeacherModel
from trainer.teacher_server.request import (
    Cell,
    FillRequest,
    Target,
    cells_of_part,
    list_cells,
    targets,
)
from trainer.teacher_server.sizes import Sizes, bytes_to_write, check_room
from trainer.teacher_server.storage import store, store_plain, store_ragged
from trainer.teacher_server.teachers import open_teachers
from trainer.teacher_server.watch import CellWork, FillProgress

Report = Callable[[str], None]
Tensors = dict[str, np.ndarray]
Writers = Mapping[str, ColumnWriter]
ShowProgress = Callable[[int, int, int], FillProgress]


def fill(
    teachers: Sequence[str | Path],
    request: FillRequest,
    report: Report = print,
    *,
    stop: StopRequest | None = None,
    show: ShowProgress = FillProgress,
) -> int:
    """Fill the cells of a part, teacher after teacher.

    Args:
        teachers: Exported models, or run folders with one.
        request: Shard sets, precision and part.
        report: Gets one line a teacher.
        stop: Asked between batches whether to go on; a cell that is nearly done is finished.
        show: Makes the progress of (work, cells, bytes).

    Returns:
        How many cells were computed (not skipped).

    Raises:
        ModelError: A teacher is no export, or of the wrong kind for the stage.
        DataError: The disk has no room for what is missing.
        ColumnError: A teacher gave a value that is not finite; the rows are named.
        StopForRequeue: The process was asked to stop; what is committed stays.
    """
    opened = open_teachers(teachers)
    mine = cells_of_part(list_cells(opened, request), *request.part)
    sizes = Sizes(request)
    check_room(bytes_to_write(opened, request, sizes))
    planned = [{target.name: target for target in targets(one, request)} for one in opened]
    all_writers = [{name: ColumnWriter(*one[name]) for name in one} for one in planned]
    todo = [cell for cell in mine if not _is_committed(cell, all_writers)]
    work = sum(cell.work for cell in todo)
    size = sum(sizes.of_cell(opened[c.teacher], planned[c.teacher][c.name], c.shard) for c in todo)
    with show(work, len(todo), size) as progress:
        run = _Run(request, stop or StopRequest(), progress)
        try:
            for number, (teacher, writers) in enumerate(zip(opened, all_writers, strict=True)):
                cells = [cell for cell in todo if cell.teacher == number]
                progress.teacher = f"teacher {number + 1} of {len(opened)}"
                mends_empty = _lacks_empty(writers) and not writers[NEWS].missing()
                rest = ", and the vector of the empty title" if mends_empty else ""
                report(f"{progress.teacher}: {teacher.folder}, {len(cells)} cells to fill{rest}")
                if cells or mends_empty:
                    _fill_one(teacher, writers, cells, run)
                _remove_working_column(teacher, writers, request)
        except StopForRequeue as stopped:
            left = sum(not _is_committed(cell, all_writers) for cell in mine)
            raise StopForRequeue(
                f"{stopped}: {left} of {len(mine)} cells are left; what is committed stays, run "
                "the same command again to go on"
            ) from stopped
    return progress.cells_done


def _lacks_empty(writers: Writers) -> bool:
    """Whether a column of news vectors is without a good vector of the empty title."""
    if NEWS not in writers:
        return False
    try:
        read_empty(writers[NEWS].shard_set, writers[NEWS].folder)
    except DamageError:
        return True
    return False


def _is_committed(cell: Cell, writers: Sequence[Writers]) -> bool:
    return writers[cell.teacher][cell.name].is_committed(cell.shard)


@dataclass
class _Run:
    """What all teachers of one call share."""

    request: FillRequest
    stop: StopRequest
    progress: FillProgress
    _holders: dict[int, np.ndarray] = field(default_factory=dict)

    @cached_property
    def clicks(self) -> ClickColumn:
        assert self.request.impressions is not None
        return ClickColumn.open(self.request.impressions, self.request.articles.num_rows)

    def holders(self, history_length: int) -> np.ndarray:
        if history_length not in self._holders:
            self._holders[history_length] = holders(self.clicks, history_length)
        return self._holders[history_length]


def _fill_one(teacher: Export, writers: Writers, cells: list[Cell], run: _Run) -> None:
    """Load a teacher and fill its cells; the teacher is gone when this returns."""
    request = run.request
    try:
        model = TeacherModel(
            teacher,
            request.articles,
            device=request.device,
            compute=request.compute,
            batch_tokens=request.batch_tokens,
        )
        with torch.inference_mode():
            _Filler(model, writers, run).fill(cells)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{teacher.folder} on {request.device}: out of memory with --batch-tokens "
            f"{request.batch_tokens}; try {request.batch_tokens // 2}"
        ) from error


class _Filler:
    """One teacher in memory, and the cells that it fills."""

    def __init__(self, model: TeacherModel, writers: Writers, run: _Run) -> None:
        self.model = model
        self.writers = writers
        self.run = run
        self.request = run.request
        self.dtype = self.request.dtype
        self._news: ColumnReader | None = None
        self._make = {TEXT: self._text, NEWS: self._news_cell, CLICKS: self._clicks}

    def fill(self, cells: list[Cell]) -> None:
        """Compute and commit cells one by one; those that are there by then are left out.

        The vector of the empty title comes first: whoever follows the column reads it first.
        """
        if _lacks_empty(self.writers):
            vector_E = store_plain(self.model.empty_title(), self.dtype)
            write_empty(self.writers[NEWS].folder, vector_E)
        for cell in cells:
            self.run.stop.check()
            writer, work = self.writers[cell.name], CellWork(self.run.progress, cell.work)
            tensors = None
            if not writer.is_committed(cell.shard):
                tensors = self._make[cell.name](cell.shard, self._counter(work))
            if tensors is None:
                work.drop()
                continue
            writer.write(cell.shard, tensors)
            info = writer.shard_set.manifest.shards[cell.shard]
            size = data_path(writer.folder, info).stat().st_size
            work.done(0 if cell.name == CLICKS else info.samples, size)

    def _counter(self, work: Pace) -> Count:
        def count(units: int) -> None:
            work.add(units)
            self.run.stop.check(work.left_s)

        return count

    def _text(self, shard: int, count: Count) -> Tensors:
        rows = shard_rows(self.request.articles, shard)
        # Bodies first: a batch that does not fit in memory is among them.
        body = store("body", self.model.bodies(rows, count), self.dtype)
        return store("title", self.model.titles(rows, count), self.dtype) | body

    def _news_cell(self, shard: int, count: Count) -> Tensors:
        return store("news", self._exact_news(shard, count), self.dtype)

    def _clicks(self, shard: int, count: Count) -> Tensors | None:
        """None where another process has finished the teacher meanwhile."""
        assert self.request.impressions is not None
        if self._news is None:
            self._news = self._open_news()
            if self._news is None:
                return None
        news = self._news
        rows = shard_rows(self.request.impressions, shard)
        users, scores, offsets = self.model.impressions_from(
            lambda articles: news.gather("news", articles), self.run.clicks, rows, count
        )
        holder = self.run.holders(self.model.export.info["history_length"])[rows]
        holds = holder == rows
        return {
            "holder": holder,
            **store_ragged(
                "user", users[holds], offsets_from_lengths(holds.astype(np.int64)), self.dtype
            ),
            "scores.values": store_plain(scores, self.dtype),
            "scores.offsets": offsets,
        }

    @cached_property
    def _exact(self) -> ColumnWriter:
        """News vectors in float32: the stored column itself, or the working column."""
        if self.request.dtype == "float32":
            return self.writers[NEWS]
        return ColumnWriter(*_working_column(self.model.export, self.request))

    def _exact_news(self, shard: int, count: Count) -> np.ndarray:
        """News vectors of a shard, float32[n, E], read or else computed and committed."""
        writer, info = self._exact, self.request.articles.manifest.shards[shard]
        cell = open_cell(writer.folder, writer.info.fingerprint, info)
        if cell is not None:
            return cell.tensors["news"]
        vectors = self.model.titles(shard_rows(self.request.articles, shard), count)
        try:
            writer.write(shard, {"news": vectors})
        except ColumnError:
            # Where another process has finished the teacher, the working column may be gone.
            if any(one.missing() for one in self.writers.values()):
                raise
        return vectors

    def _tokens_of(self, shard: int) -> int:
        """Tokens that the teacher reads of a shard's news."""
        texts = self.model.export.news_texts(self.model.tokens)
        return int(texts.lengths(shard_rows(self.request.articles, shard)).sum())

    def _open_news(self) -> ColumnReader | None:
        """News vectors of all articles in float32; None where another process has finished the
        teacher, and the working column is gone."""
        writer = self._exact
        while True:
            missing = writer.missing()
            if missing and not self.writers[CLICKS].missing():
                return None
            order = np.random.default_rng(self.request.part).permutation(len(missing))
            for shard in (missing[place] for place in order):
                if not writer.is_committed(shard):
                    self.run.stop.check()
                    self._exact_news(shard, self._counter(Pace(self._tokens_of(shard))))
            try:
                reader = ColumnReader.open(
                    self.request.articles, writer.info.name, writer.info.made_from
                )
                for shard in range(self.request.articles.num_shards):
                    reader.cell(shard)  # a mapped file stays readable when it is removed
                return reader
            except ColumnError:
                if not writer.missing():
                    raise


def _working_column(teacher: Export, request: FillRequest) -> Target:
    made_from = news_identity(teacher, request.articles, "float32", request.compute)
    return Target(request.articles, EXACT, made_from)


def _remove_working_column(teacher: Export, writers: Writers, request: FillRequest) -> None:
    """Remove the working column of a teacher all of whose cells are there, whoever filled them."""
    if request.impressions is None or any(writer.missing() for writer in writers.values()):
        return
    remove_folder(request.articles, describe(*_working_column(teacher, request)).folder)


def shard_rows(shard_set: ShardSet, shard: int) -> np.ndarray:
    """Row numbers of one shard, int64."""
    return np.arange(shard_set.shard_starts[shard], shard_set.shard_starts[shard + 1])


__all__ = ["FillRequest", "Target", "fill", "load_export", "shard_rows", "targets"]
