"""Manage the column folders of a shard set: size, number of filled cells, removal."""

import re
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.cells import read_record
from shards.column_info import ColumnInfo, read_info
from shards.column_kinds import kind_of
from shards.errors import ColumnError, DataError, UsageError
from shards.files import fsync_folder, remove
from shards.reader import ShardSet

_LEAVING = ".removing-"
"""Prefix of the name of a folder that is being removed."""
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ColumnFolder:
    """A folder in a set's ``columns/``."""

    shard_set: ShardSet
    folder: Path
    info: ColumnInfo | None
    """Content of its ``column.json``; None if there is no readable one."""
    bytes: int
    """Size of all its files."""
    cells: int
    """Number of shards whose cell is committed."""

    @property
    def kind(self) -> str | None:
        """Name of the column, such as ``tokens``."""
        return None if self.info is None else self.info.name

    @property
    def is_current(self) -> bool:
        """Whether the column was made from the current version of the set."""
        return self.info is not None and (
            self.info.made_from.get("shard_set") == self.shard_set.fingerprint
        )

    @property
    def may_be_filled(self) -> bool:
        """Whether a process may be filling the column, or other columns from it.

        No process locks a column that it fills, since any process may be killed; and file times
        decide nothing.
        """
        if self.info is None or not self.is_current:
            return False
        return self.cells < self.shard_set.num_shards or kind_of(self.info.name).is_working

    def state(self) -> str:
        """Describe in words how many cells are filled."""
        if self.info is None:
            return "no readable column.json"
        if not self.is_current:
            return "made from another version of the set"
        said = f"{self.cells} of {self.shard_set.num_shards} cells"
        return f"{said}, maybe being filled" if self.may_be_filled else said

    def made_from(self) -> str:
        """Summarise what the column was made from: no sections, and only first digits of hashes."""
        parts = []
        for key, value in ({} if self.info is None else self.info.made_from).items():
            if key in ("shard_set", "format") or value is None or isinstance(value, dict):
                continue
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"{key} {text[:12] if _HASH.fullmatch(text) else text}")
        return ", ".join(parts)


def column_folders(shard_set: ShardSet) -> list[ColumnFolder]:
    """List a set's column folders by name, including damaged and half removed ones."""
    if not shard_set.columns_dir.is_dir():
        return []
    folders = sorted(path for path in shard_set.columns_dir.iterdir() if path.is_dir())
    return [_look(shard_set, folder) for folder in folders]


def choose(columns: Sequence[ColumnFolder], names: Sequence[str]) -> list[ColumnFolder]:
    """Choose columns to remove by their folder's name or by their kind's name.

    Raises:
        UsageError: No column has the name, or a column must be named by its folder: tokens, clicks,
            and columns that a process may be filling.
    """
    chosen: dict[Path, ColumnFolder] = {}
    for name in names:
        if kind_of(name).is_removed_by_folder:
            raise UsageError(
                f"--remove {name}: name a column by its folder, such as {name}-0123456789ab"
            )
        found = [column for column in columns if name in (column.folder.name, column.kind)]
        if not found:
            known = ", ".join(column.folder.name for column in columns) or "none"
            raise UsageError(f"--remove {name}: there is no such column; existing columns: {known}")
        for column in found:
            if column.may_be_filled and name != column.folder.name:
                raise UsageError(
                    f"--remove {name}: {column.folder.name} has {column.state()}; if nothing "
                    "fills it, name it by its folder"
                )
            chosen[column.folder] = column
    return list(chosen.values())


def remove_folder(shard_set: ShardSet, folder: Path) -> bool:
    """Remove the folder of a column set if it exists; return whether it existed.

    The folder is renamed first, so that no reader finds half of it, and only one of two processes
    removes it. A process that has mapped its files can still read them. Leftovers of killed
    removals go too.

    Raises:
        ColumnError: The folder is a link or lies elsewhere, or cannot be removed.
    """
    if folder.is_symlink() or folder.parent != shard_set.columns_dir:
        raise ColumnError(f"{folder} is a link or lies outside {shard_set.columns_dir}")
    leaving = folder.with_name(f"{_LEAVING}{folder.name}-{secrets.token_hex(4)}")
    was_there = False
    try:
        folder.rename(leaving)
        was_there = True
        fsync_folder(leaving.parent)
        shutil.rmtree(leaving)
    except FileNotFoundError:
        pass  # it never existed, or another process was first
    except OSError as error:
        raise ColumnError(f"cannot remove {folder}: {error.strerror or error}") from error
    for left in folder.parent.glob(f"{_LEAVING}*"):
        remove(left)  # entries that may not be removed stay, and are listed
    return was_there


def _look(shard_set: ShardSet, folder: Path) -> ColumnFolder:
    try:
        info = read_info(folder)
    except DataError:
        info = None
    size = 0
    for path in (folder, *folder.rglob("*")):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue  # a temporary file that meanwhile has its final name
        size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    records = (read_record(folder, info.fingerprint, shard) for shard in shard_set.shards if info)
    cells = sum(record is not None for record in records)
    return ColumnFolder(shard_set, folder, info, size, cells)
