"""Write column sets: data derived from a shard set row by row, memory-mapped.

A column set is a folder ``<set>/columns/<name>-<first 12 of its fingerprint>/`` with
``column.json`` (what it was made from) and one cell per shard (:mod:`shards.cells`), row for row
with the shard. Ragged data are two tensors, ``<x>.values`` and ``<x>.offsets`` (int64[rows + 1],
from 0). Jobs that fill columns are idempotent: a committed cell is skipped, and a killed job is
simply run again.
"""

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.cell_tensors import OFFSETS, VALUES
from shards.cells import read_record, write_cell
from shards.column_info import (
    COLUMN_FILE,
    ColumnInfo,
    describe,
    differing_fields,
    list_columns,
    read_info,
    removal_command,
)
from shards.column_kinds import repair_command
from shards.column_reader import ColumnReader
from shards.errors import ColumnError, DamageError
from shards.files import clear_leftovers, write_json_atomic
from shards.ragged import row_of_value
from shards.reader import ShardSet

_ROWS_NAMED = 8
_WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)


def check_numbers(reader: ColumnReader, kinds: Mapping[str, str]) -> None:
    """Refuse tensors without one number of a given kind per row or value.

    Args:
        reader: the column.
        kinds: name of a tensor to its allowed kinds of NumPy types (``"iu"``); names that the
            column lacks are ignored.

    Raises:
        DamageError: a tensor has another kind or shape, which no version writes.
    """
    for name, allowed in kinds.items():
        dtype, shape = reader.tensors.get(name, (None, ()))
        if dtype is not None and (dtype.kind not in allowed or shape):
            raise DamageError(
                f"{reader.folder}: {name} is {dtype}{list(shape) or ''}, expected whole numbers, "
                "one each: it was edited; run "
                f"`{removal_command(reader.shard_set, reader.folder)}` and `{reader.repair}`"
            )


class ColumnWriter:
    """Fills one column set, cell by cell. Several processes may do so at once.

    Args:
        shard_set: the set the column belongs to.
        name: name of the column (``tokens``, ``clicks``, ``teacher-...``).
        made_from: everything that determines the values, as JSON values; see :func:`describe`.

    Raises:
        ColumnError: the folder cannot be made, or holds another column set.
    """

    def __init__(self, shard_set: ShardSet, name: str, made_from: Mapping[str, Any]) -> None:
        """Make the folder and its ``column.json``, unless they exist."""
        self.shard_set = shard_set
        self.info = describe(shard_set, name, made_from)
        self.folder = self.info.folder
        if shard_set.mirror is not None:
            shard_set.mirror.add_column(self.folder.name)
        self._cleared = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / COLUMN_FILE).exists():
                values = {
                    "name": name,
                    "made_from": self.info.made_from,
                    "fingerprint": self.info.fingerprint,
                }
                write_json_atomic(self.folder / COLUMN_FILE, values)
        except OSError as error:
            raise ColumnError(f"cannot make {self.folder}: {error.strerror or error}") from error
        if read_info(self.folder).fingerprint != self.info.fingerprint:
            raise ColumnError(
                f"{self.folder} holds another column set; run "
                f"`{removal_command(shard_set, self.folder)}`"
            )

    def clear_leftovers(self) -> None:
        """Remove leftovers of killed writers from the folder."""
        self._cleared = True
        if self.shard_set.mirror is None:  # in a mirror, fetched files also have such names
            clear_leftovers(self.folder)

    def is_committed(self, shard: int) -> bool:
        """Tell whether the cell of this shard is complete and belongs to this column set."""
        info = self.shard_set.manifest.shards[shard]
        if read_record(self.folder, self.info.fingerprint, info) is not None:
            return True
        mirror = self.shard_set.mirror
        if mirror is None:
            return False
        from shards.mirror_cells import open_mirror_cell

        return open_mirror_cell(mirror, self.folder, self.info.fingerprint, info) is not None

    def missing(self) -> list[int]:
        """Return the shards whose cells are not committed."""
        return [s for s in range(len(self.shard_set.manifest.shards)) if not self.is_committed(s)]

    def committed_with(self, tensor: str) -> list[int]:
        """Return the shards whose cells are committed and hold a tensor of this name."""
        folder, column = self.folder, self.info.fingerprint
        records = [read_record(folder, column, info) for info in self.shard_set.manifest.shards]
        return [s for s, record in enumerate(records) if record and tensor in record.crc32]

    def write(
        self, shard: int, tensors: Mapping[str, np.ndarray], *, replace: bool = False
    ) -> None:
        """Check and commit one cell; keep a cell that another writer committed meanwhile.

        Args:
            shard: number of the shard.
            tensors: each with the shard's rows as first dimension, or ``<x>.values`` with
                ``<x>.offsets``.
            replace: write even if the cell is committed.

        Raises:
            ColumnError: a shape does not fit the shard, a float is not finite (the message names
                the rows), or other writers kept mixing their files with this writer's.
        """
        if not self._cleared:
            self.clear_leftovers()
        info = self.shard_set.manifest.shards[shard]
        _check_tensors(tensors, info.samples, int(self.shard_set.shard_starts[shard]), info.name)
        if not replace and self.is_committed(shard):
            return
        # Two writers whose values differ in a last bit can leave the data of one under the record
        # of the other. Each writer checks after its last rename, so the last one to rename sees
        # the mixture. It waits, to avoid meeting the other again, and writes once more. A file
        # system that shows renames late may still hide it; then the cell counts as missing.
        for wait_s in _WAITS_S:
            write_cell(self.folder, self.info.fingerprint, info, tensors)
            for pause_s in (0.0, random.uniform(0.0, wait_s)):
                time.sleep(pause_s)
                if read_record(self.folder, self.info.fingerprint, info) is not None:
                    return
        raise ColumnError(
            f"the cell of {info.name} in {self.folder} is not committed after {len(_WAITS_S)} "
            "tries: others write it at the same time; run the same command again"
        )


def _check_tensors(
    tensors: Mapping[str, np.ndarray], rows: int, first_row: int, where: str
) -> None:
    """Refuse tensors that a reader could not use; ``first_row`` is the shard's first row."""
    if not tensors:
        raise ColumnError(f"{where}: no tensor to write")
    for name, array in tensors.items():
        offsets = None
        if name.endswith(VALUES):
            offsets = tensors.get(name.removesuffix(VALUES) + OFFSETS)
            if offsets is None:
                raise ColumnError(f"{where}: {name} has no offsets")
            if (
                offsets.dtype != np.int64
                or offsets.shape != (rows + 1,)
                or offsets[0] != 0
                or offsets[-1] != len(array)
                or (np.diff(offsets) < 0).any()
            ):
                raise ColumnError(
                    f"{where}: the offsets of {name} are not int64[{rows + 1}] "
                    f"from 0 to {len(array)}"
                )
        elif not name.endswith(OFFSETS) and (array.ndim == 0 or len(array) != rows):
            raise ColumnError(f"{where}: {name} has shape {array.shape}, the shard has {rows} rows")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.unique(np.nonzero(~np.isfinite(array))[0])
            if offsets is not None:
                bad = np.unique(row_of_value(offsets, bad))
            named = ", ".join(str(first_row + row) for row in bad[:_ROWS_NAMED])
            more = f" and {len(bad) - _ROWS_NAMED} more" if len(bad) > _ROWS_NAMED else ""
            raise ColumnError(
                f"{where}: {name} ({array.dtype}) is not finite in {len(bad)} rows: {named}{more}; "
                "nothing was written (in float16, values beyond 65504 overflow)"
            )


__all__ = [
    "ColumnInfo",
    "ColumnReader",
    "ColumnWriter",
    "describe",
    "differing_fields",
    "list_columns",
    "read_info",
    "removal_command",
    "repair_command",
]
