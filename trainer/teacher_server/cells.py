"""Cells of a column: the list of cells, their division among processes, missing cells, disk space.

A cell is one shard of one column. The list of cells is the same for every process, whatever is
already filled. It is cut into parts of about equal work; a part depends only on its number and on
the number of parts, so any task of a job array can be killed and run again.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.cells import data_path, read_record
from shards.columns import ColumnWriter, describe
from shards.reader import ShardSet
from trainer.errors import DataError, UsageError

CELL_BYTES = 2048
"""Header and commit record of a cell in bytes, rounded up."""
_MARGIN_SHARE = 0.02
_MARGIN_BYTES = 64 << 20


class Target(NamedTuple):
    """A column that may or may not exist; naming it creates nothing on disk."""

    shard_set: ShardSet
    name: str
    made_from: dict[str, Any]


class Cell(NamedTuple):
    """One shard of one column."""

    column: int
    """Index in a list of columns."""
    shard: int
    work: int
    """Work in the column's unit: tokens to encode, impressions or logits to score."""


def cells_of_part(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Return the cells whose middles lie in the ``part``-th of ``parts`` equal spans.

    Every cell is in exactly one part. With more parts than cells, some parts are empty.
    """
    ends = np.cumsum([cell.work for cell in cells], dtype=np.int64).tolist()
    total = ends[-1] if ends else 1
    return [
        cell
        for cell, end in zip(cells, ends, strict=True)
        if (2 * end - cell.work) * parts // (2 * total) == part
    ]


def parse_part(text: str) -> tuple[int, int]:
    """Parse ``I/N`` to (I, N).

    Raises:
        UsageError: The text is not I/N, or I is outside 0..N-1.
    """
    first, slash, second = text.partition("/")
    if not slash or not first.isdecimal() or not second.isdecimal():
        raise UsageError(f"--part {text!r}: expected I/N, such as 0/8")
    part, parts = int(first), int(second)
    if part >= parts:
        raise UsageError(
            f"--part {text}: parts are counted from 0, so the last of {parts} is "
            f"{parts - 1}/{parts} (sbatch --array=0-{max(parts - 1, 0)})"
        )
    return part, parts


@dataclass(frozen=True)
class Need:
    """Bytes still to be written into one folder."""

    folder: Path
    bytes: int


def missing_cells(target: Target) -> list[int]:
    """Return the shards without a committed cell; unlike a writer, create no folder."""
    info = describe(*target)
    if not info.folder.is_dir() and target.shard_set.mirror is None:
        return list(range(target.shard_set.num_shards))
    if target.shard_set.mirror is not None:
        return ColumnWriter(*target).missing()  # cells in other folders count, too
    shards = target.shard_set.manifest.shards
    return [
        number
        for number, shard in enumerate(shards)
        if read_record(info.folder, info.fingerprint, shard) is None
    ]


def stored_bytes(target: Target) -> int:
    """Return the bytes of a column's data files on disk."""
    info = describe(*target)
    paths = (data_path(info.folder, shard) for shard in target.shard_set.manifest.shards)
    return sum(path.stat().st_size for path in paths if path.is_file())


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is, or would be created."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(
    needs: Iterable[Need], remedy: str = "free disk space, or name fewer teachers"
) -> None:
    """Refuse work that would fill a disk; ``remedy`` is the advice in the message.

    Raises:
        DataError: A file system has less space than the data and a margin need.
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
                f"{of_disk[0].folder}: {mb(total)} are still to be written and {mb(margin)} "
                f"should stay free, but only {mb(free)} are free; {remedy} (nothing was computed)"
            )


def mb(size: int) -> str:
    """Format bytes for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"
