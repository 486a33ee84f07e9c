"""Progress of a filling: a bar if a person watches, plain lines in a log."""

import time
from typing import Any, TextIO

from shards.progress import Progress, format_duration
from shards.stopping import Pace
from trainer.teacher_server.cells import mb


class FillProgress(Progress):
    """Progress over all cells of a part, by work, not by number of cells.

    The unit is tokens, so that a shard of long bodies counts by its cost and the time left is right
    from the first minute; an impression counts as one token. Work of cells that another process
    commits meanwhile is subtracted from the total.
    """

    def __init__(
        self,
        work: int,
        cells: int,
        size: int,
        *,
        unit: str = "tokens",
        stream: TextIO | None = None,
        **options: Any,
    ) -> None:
        """Start the clock.

        Args:
            work: Tokens and impressions of all cells to fill, or the unit in ``unit``.
            cells: Number of cells.
            size: Bytes of all cells.
            unit: Unit of the work.
            stream: Stream to write to; standard error by default.
            options: Options of :class:`shards.progress.Progress`.
        """
        super().__init__(work, "fill", unit, stream=stream, **options)
        self.cells = cells
        self.size = size
        self.cells_done = 0
        self.bytes_done = 0
        self.articles_done = 0
        self.encode_s = 0.0
        self.teacher = ""

    def __enter__(self) -> "FillProgress":
        """Return itself."""
        return self

    def committed(self, articles: int, size: int, elapsed_s: float) -> None:
        """Count a committed cell; ``articles`` is 0 for a cell over impressions."""
        self.cells_done += 1
        self.bytes_done += size
        self.articles_done += articles
        self.encode_s += elapsed_s if articles else 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(self._told())

    def line(self, elapsed_s: float) -> str:
        """Return the plain line after ``elapsed_s`` seconds."""
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        total = self.total or 0
        share_pct = 100 * self.done / total if total else 100.0
        left = f", {format_duration((total - self.done) / rate)} left" if rate > 0 else ""
        return (
            f"fill: {self.teacher}, {share_pct:.0f}% of the work, {self._told()}, "
            f"{rate:,.0f} {self.unit}/s{left}"
        )

    def _told(self) -> str:
        told = f"cell {self.cells_done} of {self.cells}, {mb(self.bytes_done)} of {mb(self.size)}"
        if self.encode_s > 0:
            told += f", {self.articles_done / self.encode_s:,.0f} articles/s"
        return told


class CellWork(Pace):
    """Counter that adds the work of one cell to the progress exactly once."""

    def __init__(self, progress: FillProgress, work: int) -> None:
        super().__init__(work)
        self._progress = progress

    def add(self, units: int) -> int:
        """Count a batch."""
        counted = super().add(units)
        self._progress.update(counted)
        return counted

    def done(self, articles: int, size: int) -> None:
        """Record that the cell is committed."""
        self._progress.update(self._left)
        self._progress.committed(articles, size, time.monotonic() - self.start_s)

    def drop(self) -> None:
        """Record that another process has committed the cell."""
        self._progress.skip(self._left)
        self._progress.cells -= 1
