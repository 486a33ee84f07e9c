"""Fetch the bodies of the coming windows in the background while training continues.

Training depends on none of these fetches: a missing row is fetched when it is read.
"""

import threading
from collections.abc import Sequence
from itertools import islice

from shards.cache import GIB
from shards.column_reader import ColumnReader
from shards.errors import DataError
from shards.order import EpochOrder, Position


class ReadAhead:
    """Fetches ahead for the columns of one set; does nothing for a local set.

    Safe to use from several threads.

    Args:
        order: The order in which training visits the rows.
        columns: Columns of the set; local columns are ignored.
        shards: Number of shards to fetch beyond the current window.

    Raises:
        DataError: The cache is too small for a window plus the files that are always needed.
    """

    def __init__(self, order: EpochOrder, columns: Sequence[ColumnReader], shards: int) -> None:
        """Compute the sizes; fetch nothing yet."""
        self._order = order
        self._columns = columns
        self._shards = shards
        self._cells = [column.mirror_cells() for column in columns]
        self._changed = threading.Condition()
        self._position: Position | None = None
        self._window: tuple[int, ...] = ()
        self._seen: Position | None = None
        self._started = False
        mirror = next((c.mirror for cells in self._cells for c in cells.values()), None)
        self._cache = None if mirror is None else mirror.cache
        if self._cache is not None:
            self._room = self._cache.max_bytes - sum(
                cell.small_bytes for cells in self._cells for cell in cells.values()
            )
            self._check_room()

    def at(self, position: Position) -> None:
        """Record that training now reads the rows before this position."""
        if self._cache is None:
            return
        with self._changed:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="read-ahead", daemon=True).start()
            self._position = position
            self._changed.notify()

    def _bytes(self, shard: int) -> int:
        cells = [cells[shard] for cells in self._cells if shard in cells]
        return sum(cell.size(name) for cell in cells for name in cell.windowed())

    def _check_room(self) -> None:
        assert self._cache is not None
        sizes = sorted(map(self._bytes, range(len(self._order.counts))), reverse=True)
        window = sum(sizes[: self._order.window_shards])
        if window > self._room:
            needed = window + self._cache.max_bytes - self._room
            raise DataError(
                f"the cache {self._cache.folder} may hold {self._cache.max_bytes / GIB:.3g} GiB,"
                f" but titles and the bodies of one window of {self._order.window_shards} shards"
                f" take {needed / GIB:.3g} GiB; raise data.cache_gib, or lower data.window_shards"
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._position is None or self._position == self._seen:
                    self._changed.wait()
                self._seen = position = self._position
            self._fetch(position)

    def _fetch(self, position: Position) -> None:
        assert self._cache is not None
        window, wanted = self._wanted(position)
        if wanted == self._window:
            return
        self._window = wanted
        cells = [cells[s] for s in wanted for cells in self._cells if s in cells]
        kept = frozenset(cell.path(name) for cell in cells for name in cell.windowed())
        self._cache.protect(kept)
        for all_cells in self._cells:
            for shard in all_cells.keys() - set(wanted):
                all_cells[shard].drop_evicted()
        for cell in cells:
            if self._moved_on(window):
                self._window = ()
                return
            try:
                cell.bring(cell.windowed())
            except DataError:
                # The error is already on standard error. A later read of the row fetches again and
                # raises the error.
                self._window = ()
                return

    def _wanted(self, position: Position) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shards of the current window, and those plus the next ones that fit."""
        windows = self._order.windows_from(position)
        window = tuple(next(windows))
        wanted, room = list(window), self._room - sum(map(self._bytes, window))
        following = (shard for shards in windows for shard in shards)
        for shard in islice(following, min(self._shards, len(self._order.counts))):
            if shard not in wanted:
                room -= self._bytes(shard)
                if room < 0:
                    break
                wanted.append(shard)
        return window, tuple(wanted)

    def _moved_on(self, window: tuple[int, ...]) -> bool:
        with self._changed:
            position = self._position
        return position is not None and tuple(next(self._order.windows_from(position))) != window
