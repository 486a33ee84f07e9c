"""Following columns that another process fills: a read of a missing cell waits for the cell.

Whether the filling continues is judged by the number of commit records over all followed columns,
never by file times. A wait ends with an error if no cell came for a set time, or when the wait has
become so long that the run would be taken for hung.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shards.cells import read_record, record_path
from shards.column_info import COLUMN_FILE
from shards.columns import ColumnInfo, ColumnReader, describe
from shards.reader import ShardSet
from trainer.errors import ColumnError

LINE_EVERY_S = 30.0
"""Seconds between two lines about the same wait."""
_POLL_S = 0.5
Report = Callable[[str], None]


@dataclass
class _Followed:
    """A column that is being filled, with the cells seen so far."""

    shard_set: ShardSet
    info: ColumnInfo
    teacher: str
    remedy: str
    committed: set[int] = field(default_factory=set)

    def look(self) -> None:
        """Note new cells: read new commit records, only list the others."""
        try:
            there = {path.name for path in self.info.folder.iterdir()}
        except FileNotFoundError:
            return
        for number, shard in enumerate(self.shard_set.manifest.shards):
            path = record_path(self.info.folder, shard)
            if number in self.committed or path.name not in there:
                continue
            if read_record(self.info.folder, self.info.fingerprint, shard) is not None:
                self.committed.add(number)

    @property
    def progress(self) -> str:
        """Number of existing cells, in words."""
        return f"{len(self.committed)} of {len(self.shard_set.manifest.shards)} of its cells"


class Follower:
    """Follower that opens incomplete columns and waits for missing cells.

    Safe to use from several threads: one thread looks and reports, the others wait for it.

    Args:
        timeout_s: A wait ends with an error if no cell of any column came for this many seconds.
        longest_s: A wait ends with an error after this many seconds in any case.
        report: Receives the first line of a wait at once, and one every ``LINE_EVERY_S`` seconds.
    """

    def __init__(self, timeout_s: float, longest_s: float, report: Report | None = None) -> None:
        self._timeout_s = timeout_s
        self._longest_s = longest_s
        self._report = report or _print_with_rank
        self._columns: list[_Followed] = []
        self._lock = threading.Lock()

    def open(
        self,
        shard_set: ShardSet,
        name: str,
        made_from: Mapping[str, Any],
        teacher: str,
        remedy: str,
    ) -> ColumnReader:
        """Open a column as soon as it has been started and has one cell.

        Args:
            shard_set: The set.
            name: Name of the column.
            made_from: Identity of the column: all that determines its values.
            teacher: Name of the teacher, for messages.
            remedy: Command that fills the column.

        Raises:
            ColumnError: The column has other settings, or no cell came in time.
        """
        column = _Followed(shard_set, describe(shard_set, name, made_from), teacher, remedy)
        self._columns.append(column)
        begun = (column.info.folder / COLUMN_FILE).is_file
        self._wait(
            column, begun, f"the column {name} of teacher {teacher} has not been started yet"
        )
        return ColumnReader.open(shard_set, name, made_from, partial(self._wait_for_cell, column))

    def note(self, line: str) -> None:
        """Print a line once for all ranks."""
        if os.environ.get("RANK", "0") == "0":
            self._report(line)

    def _wait_for_cell(self, column: _Followed, shard: int) -> None:
        info = column.shard_set.manifest.shards[shard]
        what = f"the cell of {info.name} in {column.info.name} of teacher {column.teacher}"
        self._wait(column, lambda: shard in column.committed, f"{what} is missing")

    def _wait(self, column: _Followed, is_there: Callable[[], bool], what: str) -> None:
        with self._lock:
            seen = self._look()
            began = line_at = news = time.monotonic()
            while not is_there():
                now = time.monotonic()
                if now >= line_at:
                    waited = f"waited {now - began:.0f} s, the last new cell {now - news:.0f} s ago"
                    self._report(f"waiting: {what}; {column.progress} are there; {waited}")
                    line_at = now + LINE_EVERY_S
                if now - news >= self._timeout_s:
                    raise ColumnError(self._stopped(column, what))
                if now - began >= self._longest_s:
                    raise ColumnError(self._too_slow(column, what))
                time.sleep(min(_POLL_S, self._timeout_s / 4))
                count = self._look()
                if count > seen:
                    seen, news = count, time.monotonic()

    def _look(self) -> int:
        """Count the existing cells of all columns."""
        for column in self._columns:
            column.look()
        return sum(len(column.committed) for column in self._columns)

    def _stopped(self, column: _Followed, what: str) -> str:
        return (
            f"{what}; {column.progress} are there, and no cell of any teacher came for "
            f"{self._timeout_s:g} s (teachers.follow_timeout_s), so the filling has stopped. "
            f"Continue it: {column.remedy}; then start this run again, it continues from its last "
            "checkpoint"
        )

    def _too_slow(self, column: _Followed, what: str) -> str:
        return (
            f"{what}; {column.progress} are there and the filling continues, but a rank that "
            f"waits longer than {self._longest_s:g} s would be taken for hung "
            "(run.hang_timeout_s). Start this run again later, it continues from its last "
            "checkpoint, or raise run.hang_timeout_s"
        )


def _print_with_rank(line: str) -> None:
    rank = os.environ.get("RANK")
    print(line if rank is None else f"rank {rank}: {line}", flush=True)
