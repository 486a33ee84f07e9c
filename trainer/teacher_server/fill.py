"""Filling columns of teachers: one teacher in memory at a time, one committed cell after another.

A cell that is there already is skipped, so filling again after a kill, or beside other processes,
only does what is missing.

Cells may follow from a working column, as scores do from news vectors in float32. Every process
that needs it takes what is there and computes what is missing, a cell at a time in an order of its
own, and commits it for the others. So the news of a corpus is encoded once for all tasks of an
array, no task waits for another, and any of them may be killed. Whoever finds the teacher complete
removes the working column. No torch is imported where no teacher is loaded.
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
        teachers: Exported models, or run folders with one.
        request: Shard sets, stage, precision and part.
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
    """The cells of a part that are still to be filled.

    Args:
        signals: In the order in which they are filled.
        part: (I, N): the I-th of N parts of the cells, counted from 0.
        stop: Asked whether to go on.
        remedy: What to do where the disk has no room.

    Raises:
        DataError: The disk has no room for what is missing.
        ColumnError: A folder cannot be made.
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        part: tuple[int, int],
        stop: StopRequest | None = None,
        remedy: str = "make room, or name fewer teachers",
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
        """Those of some signals."""
        found = ((self.signals[cell.column], cell) for cell in self.cells)
        return [(signal, cell) for signal, cell in found if signal in signals]

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Where the process is asked to stop, say how much is left."""
        try:
            yield
        except StopForRequeue as stopped:
            raise StopForRequeue(
                f"{stopped}: {len(self._left())} of {len(self.mine)} cells are left; what is "
                "committed stays, run the same command again to go on"
            ) from stopped


class Filler:
    """Fills the cells of some signals, with their teacher in memory or none.

    Args:
        signals: All of the teacher, or those that need none in memory.
        todo: The cells of the part.
        progress: Shows them.
        teacher: Loaded when there is something to compute; None where no model is needed.
        request: How the teacher is run.
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
        """Return the signals that lack what lies beside their cells, or have it damaged."""
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
        """What lies beside the cells comes first: whoever follows a column reads it first."""
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
        """Return a cell of a working column, read or else computed and committed."""
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
            # Where another process has finished the teacher, the working column may be gone.
            if any(self.writer(one).missing() for one in self.signals):
                raise
        return tensors

    def complete(self, signal: Signal, *, unless: Signal) -> ColumnReader | None:
        """Complete a column that cells follow from, and open it.

        Args:
            signal: Whose column it is.
            unless: Whose cells follow from it.

        Returns:
            None where another process has finished ``unless``, and the working column is gone.
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
                    reader.cell(shard)  # a mapped file stays readable when it is removed
                self._complete[signal.folder] = reader
                return reader
            except ColumnError:
                if not writer.missing():
                    raise

    def finish(self) -> None:
        """Remove the working columns of a teacher all of whose cells are there, whoever filled
        them."""
        working = [one.working for one in self.signals if one.working is not None]
        if working and not any(self.writer(one).missing() for one in self.signals):
            for signal in working:
                remove_folder(signal.shard_set, signal.folder)
