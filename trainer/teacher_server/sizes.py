"""How many bytes teachers' columns take, by formula and on disk, and whether there is room.

Stage I takes ``N x 2 x V`` bytes a teacher (N articles, titles and bodies; V bytes a vector: twice
its width in float16, four times in float32, width + 4 in int8). Stage II takes ``N x V`` for news,
and for the log ``D x V + K x b + 20 x n`` (D distinct histories, K candidates of n impressions, b
bytes a score).
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.cells import data_path, read_record
from shards.clicks import ClickColumn
from shards.columns import ColumnWriter, describe
from shards.histories import holders
from trainer.errors import DataError
from trainer.export.folder import Export
from trainer.teacher_server import identity
from trainer.teacher_server.request import FillRequest, Target, targets
from trainer.teacher_server.storage import value_bytes, vector_bytes

ROW_BYTES = 20
"""Of an impression: where its scores and its user vector begin, and who holds the vector."""
CELL_BYTES = 2048
"""Header and commit record of a cell, rounded up."""
_MARGIN_SHARE = 0.02
_MARGIN_BYTES = 64 << 20


@dataclass
class Sizes:
    """Bytes of every cell by formula; what must be read from the click log is read once."""

    request: FillRequest
    _held_by_length: dict[int, np.ndarray] = field(default_factory=dict)
    _columns: dict[str, np.ndarray] = field(default_factory=dict)

    def of_cell(self, teacher: Export, target: Target, shard: int) -> int:
        """Bytes of one cell."""
        return int(self.of_cells(teacher, target)[shard])

    def of_cells(self, teacher: Export, target: Target) -> np.ndarray:
        """Bytes of each cell of one column of a teacher, int64[shards]."""
        key = describe(*target).fingerprint
        if key not in self._columns:
            self._columns[key] = self._measure(teacher, target)
        return self._columns[key]

    def _measure(self, teacher: Export, target: Target) -> np.ndarray:
        width = int(teacher.info["model_settings"]["news_dim"])
        dtype = str(target.made_from["dtype"])
        vector = vector_bytes(width, dtype)
        rows = np.diff(target.shard_set.shard_starts)
        if target.name != identity.CLICKS:
            kinds = 2 if target.name == identity.TEXT else 1
            return rows * (kinds * vector) + CELL_BYTES
        clicks = ClickColumn.open(target.shard_set)
        cells = range(target.shard_set.num_shards)
        shown = np.array([int(clicks.reader.cell(s)["candidates.offsets"][-1]) for s in cells])
        held = self._held(clicks, int(teacher.info["history_length"]))
        return held * vector + shown * value_bytes(dtype) + rows * ROW_BYTES + CELL_BYTES

    def _held(self, clicks: ClickColumn, length: int) -> np.ndarray:
        """Distinct histories whose vectors each cell holds, int64[shards]."""
        if length not in self._held_by_length:
            who = holders(clicks, length)
            starts = clicks.reader.shard_set.shard_starts
            own = np.concatenate([[0], np.cumsum(who == np.arange(len(who)))])
            self._held_by_length[length] = own[starts[1:]] - own[starts[:-1]]
        return self._held_by_length[length]


@dataclass(frozen=True)
class Need:
    """What is still to be written into one folder."""

    folder: Path
    bytes: int


def bytes_to_write(
    teachers: Sequence[Export], request: FillRequest, sizes: Sizes | None = None
) -> list[Need]:
    """Bytes of the cells that are not committed, by the folder they go to.

    Of all parts: the tasks of an array share one disk. Stage II also keeps news vectors in float32
    while a teacher's cells are filled.
    """
    sizes = sizes or Sizes(request)
    needs: dict[Path, int] = {}
    for teacher in teachers:
        for target in targets(teacher, request):
            missing = missing_cells(target)
            size = int(sizes.of_cells(teacher, target)[missing].sum())
            if target.name == identity.CLICKS and missing and request.dtype != "float32":
                width = int(teacher.info["model_settings"]["news_dim"])
                exact = request.articles.num_rows * vector_bytes(width, "float32")
                folder = request.articles.columns_dir
                needs[folder] = needs.get(folder, 0) + exact
            folder = target.shard_set.columns_dir
            needs[folder] = needs.get(folder, 0) + size
    return [Need(folder, size) for folder, size in needs.items()]


def missing_cells(target: Target) -> list[int]:
    """Shards without a committed cell; unlike a writer, this makes no folder."""
    info = describe(*target)
    if not info.folder.is_dir() and target.shard_set.mirror is None:
        return list(range(target.shard_set.num_shards))
    if target.shard_set.mirror is not None:
        return ColumnWriter(*target).missing()  # cells elsewhere count too
    shards = target.shard_set.manifest.shards
    return [
        number
        for number, shard in enumerate(shards)
        if read_record(info.folder, info.fingerprint, shard) is None
    ]


def stored_bytes(target: Target) -> int:
    """Bytes of the data files of a column on disk."""
    info = describe(*target)
    paths = (data_path(info.folder, shard) for shard in target.shard_set.manifest.shards)
    return sum(path.stat().st_size for path in paths if path.is_file())


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder is, or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(needs: Iterable[Need], remedy: str = "make room, or name fewer teachers") -> None:
    """Refuse to start what would fill a disk; ``remedy`` is what the user is told to do.

    Raises:
        DataError: A file system has less room than will be written and a margin.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        folder = need.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        by_disk.setdefault(folder.stat().st_dev, []).append(need)
    for of_disk in by_disk.values():
        total = sum(need.bytes for need in of_disk)
        margin = int(total * _MARGIN_SHARE) + _MARGIN_BYTES
        free = free_bytes(of_disk[0].folder)
        if total and free < total + margin:
            raise DataError(
                f"{of_disk[0].folder}: {mb(total)} are still to be written and {mb(margin)} should "
                f"stay free, but {mb(free)} are free; {remedy} (nothing was computed)"
            )


def mb(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"
