"""Filling of teachers' columns: one teacher in memory at a time, one committed cell at a time.

Cells that exist are skipped, so filling again after a kill, or next to other processes, computes
only the missing cells.

Some cells are computed from a working column, as scores are from news vectors in float32. Every
process that needs the working column reads its existing cells, computes missing cells one at a time
in its own order, and commits them for the others. So the news of a corpus is encoded once for all
tasks of an array, no task waits for another, and any task may be killed. The process that finds the
teacher complete removes the working column. Without a loaded teacher, torch is not imported.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.cells import data_path, open_cell
from shards.column_folders import remove_folder
from shards.columns import ColumnReader, ColumnWriter
from shards.stopping import Pace
from trainer.engine.signals import StopRequest
from trainer.errors import ColumnError, DamageError, ModelError, StopForRequeue
from trainer.export.folder import Export
from trainer.teacher_server.cells import Cell, cells_of_part, check_room
from trainer.teacher_server.kinds.base import Count, Signal, Tensors
from trainer.teacher_server.request import FillRequest, bytes_to_write, list_cells, signals_of
from trainer.teacher_server.teachers import open_teachers
from trainer.teacher_server.watch import CellWork, FillProgress

if TYPE_CHECKING:
    from trainer.teacher_server.outputs import TeacherModel

Report = Callable[[str], None]
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
        teachers: Exported models, or run folders that contain one.
        request: Shard sets, stage, precision and part.
        report: Receives one line per teacher.
        stop: Asked between batches whether to continue; an almost finished cell is finished.
        show: Makes the progress display from (work, cells, bytes).

    Returns:
        The number of computed cells, without skipped ones.

    Raises:
        ModelError: A teacher is not an export, or is of the wrong kind for the stage.
        DataError: The disk is too small for the missing cells.
        ColumnError: A teacher returned a value that is not finite; names the rows.
        StopForRequeue: The process was asked to stop; committed cells stay.
    """
    opened = open_teachers(teachers)
    groups = [signals_of(teacher, request) for teacher in opened]
    todo = Todo([signal for signals in groups for signal in signals], request.part, stop)
    with show(todo.work, len(todo.cells), todo.size) as progress, todo.stopping():
        for number, (teacher, signals) in enumerate(zip(opened, groups, strict=True)):
            progress.teacher = f"teacher {number + 1} of {len(opened)}"
            filler = Filler(signals, todo, progress, teacher=teacher, request=request)
            mends = [one for one in filler.lacking_extras() if not filler.writer(one).missing()]
            rest = "".join(f", and {signal.extra}" for signal in mends)
            cells = todo.of(signals)
            report(f"{progress.teacher}: {teacher.folder}, {len(cells)} cells to fill{rest}")
            if cells or mends:
                filler.fill(cells)
            filler.finish()
    return progress.cells_done


class Todo:
    """Cells of a part that are still to be filled.

    Args:
        signals: Signals in the order in which they are filled.
        part: (I, N): the I-th of N parts of the cells, counted from 0.
        stop: Asked whether to continue.
        remedy: Advice in the message if the disk is too small.

    Raises:
        DataError: The disk is too small for the missing cells.
        ColumnError: A folder cannot be created.
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        part: tuple[int, int],
        stop: StopRequest | None = None,
        remedy: str = "free disk space, or name fewer teachers",
    ) -> None:
        self.signals = signals
        self.part = part
        self.stop = stop or StopRequest()
        self.mine = cells_of_part(list_cells(signals), *part)
        check_room(bytes_to_write(signals), remedy)
        self._writers = [ColumnWriter(*signal.target) for signal in signals]
        self.cells = self._left()
        self.work = sum(cell.work for cell in self.cells)
        self.size = sum(int(signals[cell.column].sizes[cell.shard]) for cell in self.cells)

    def _left(self) -> list[Cell]:
        return [c for c in self.mine if not self._writers[c.column].is_committed(c.shard)]

    def of(self, signals: Sequence[Signal]) -> list[tuple[Signal, Cell]]:
        """Return the cells of some signals."""
        found = ((self.signals[cell.column], cell) for cell in self.cells)
        return [(signal, cell) for signal, cell in found if signal in signals]

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """If the process is asked to stop, add how many cells are left."""
        try:
            yield
        except StopForRequeue as stopped:
            raise StopForRequeue(
                f"{stopped}: {len(self._left())} of {len(self.mine)} cells are left; committed "
                "cells stay, run the same command again to continue"
            ) from stopped


class Filler:
    """Filler for the cells of some signals, with or without their teacher in memory.

    Args:
        signals: All signals of the teacher, or those that need no teacher in memory.
        todo: The cells of the part.
        progress: Displays the cells.
        teacher: Loaded when there is something to compute; None if no model is needed.
        request: How to run the teacher.
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        todo: Todo,
        progress: FillProgress,
        *,
        teacher: Export | None = None,
        request: FillRequest | None = None,
    ) -> None:
        self.signals = signals
        self.todo = todo
        self.progress = progress
        self.teacher = teacher
        self.request = request
        self._model: TeacherModel | None = None
        self._writers: dict[Path, ColumnWriter] = {}
        self._complete: dict[Path, ColumnReader] = {}

    @property
    def model(self) -> "TeacherModel":
        """The teacher in memory."""
        assert self._model is not None
        return self._model

    def writer(self, signal: Signal) -> ColumnWriter:
        """Return the writer of a signal's column."""
        if signal.folder not in self._writers:
            self._writers[signal.folder] = ColumnWriter(*signal.target)
        return self._writers[signal.folder]

    def lacking_extras(self) -> list[Signal]:
        """Return the signals whose extra files are missing or damaged."""
        lacking = []
        for signal in self.signals:
            try:
                signal.check_extra()
            except DamageError:
                lacking.append(signal)
        return lacking

    def fill(self, cells: Sequence[tuple[Signal, Cell]]) -> None:
        """Load the teacher, then compute and commit cells one by one.

        Raises:
            ModelError: The device has too little memory.
        """
        if self.teacher is None or self.request is None:
            self._fill(cells)
            return
        import torch

        from trainer.teacher_server import outputs

        request = self.request
        try:
            self._model = outputs.TeacherModel(self.teacher, request)
            with torch.inference_mode():
                self._fill(cells)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.teacher.folder} on {request.device}: out of memory with --batch-tokens "
                f"{request.batch_tokens}; try {request.batch_tokens // 2}"
            ) from error

    def _fill(self, cells: Sequence[tuple[Signal, Cell]]) -> None:
        """Fill cells after their extra files, which followers of a column read first."""
        for signal in self.lacking_extras():
            signal.write_extra(self.model)
        for signal, cell in cells:
            self.todo.stop.check()
            writer, work = self.writer(signal), CellWork(self.progress, cell.work)
            tensors = None
            if not writer.is_committed(cell.shard):
                tensors = signal.cell(self, cell.shard, self._counter(work))
            if tensors is None:
                work.drop()
                continue
            writer.write(cell.shard, tensors)
            info = writer.shard_set.manifest.shards[cell.shard]
            size = data_path(writer.folder, info).stat().st_size
            work.done(info.samples if signal.over == "articles" else 0, size)

    def _counter(self, work: Pace) -> Count:
        def count(units: int) -> None:
            work.add(units)
            self.todo.stop.check(work.left_s)

        return count

    def cell_of(self, signal: Signal, shard: int, count: Count) -> Tensors:
        """Return a cell of a working column: read it, or else compute and commit it."""
        writer = self.writer(signal)
        info = writer.shard_set.manifest.shards[shard]
        cell = open_cell(writer.folder, writer.info.fingerprint, info)
        if cell is not None:
            return dict(cell.tensors)
        tensors = signal.cell(self, shard, count)
        assert tensors is not None
        try:
            writer.write(shard, tensors)
        except ColumnError:
            # If another process has finished the teacher, the working column may be gone.
            if any(self.writer(one).missing() for one in self.signals):
                raise
        return tensors

    def complete(self, signal: Signal, *, unless: Signal) -> ColumnReader | None:
        """Complete a working column, and open it.

        Args:
            signal: Signal of the working column.
            unless: Signal that is computed from it.

        Returns:
            The column; None if another process has finished ``unless`` and removed the working
            column.
        """
        if (known := self._complete.get(signal.folder)) is not None:
            return known
        writer = self.writer(signal)
        while True:
            missing = writer.missing()
            if missing and not self.writer(unless).missing():
                return None
            order = np.random.default_rng(self.todo.part).permutation(len(missing))
            for shard in (missing[place] for place in order):
                if not writer.is_committed(shard):
                    self.todo.stop.check()
                    self.cell_of(signal, shard, self._counter(Pace(signal.work[shard])))
            try:
                reader = ColumnReader.open(*signal.target)
                for shard in range(signal.shard_set.num_shards):
                    reader.cell(shard)  # a mapped file stays readable after its removal
                self._complete[signal.folder] = reader
                return reader
            except ColumnError:
                if not writer.missing():
                    raise

    def finish(self) -> None:
        """Remove the teacher's working columns once all its cells are there."""
        working = [one.working for one in self.signals if one.working is not None]
        if working and not any(self.writer(one).missing() for one in self.signals):
            for signal in working:
                remove_folder(signal.shard_set, signal.folder)
