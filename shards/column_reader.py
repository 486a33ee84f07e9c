"""Read a column set: gather any rows from memory-mapped cells.

Neighbouring rows are gathered one cell at a time, without a Python step per row. Scattered rows, a
few from each cell, are sliced from the maps one by one, which costs less than a NumPy gather for
each cell.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from shards.cell_tensors import OFFSETS, VALUES, TensorPlace, unlike
from shards.cells import Cell, open_cell, read_record
from shards.column_info import (
    ColumnInfo,
    describe,
    differing_fields,
    list_columns,
    read_info,
)
from shards.column_kinds import kind_of, repair_command
from shards.errors import ColumnError, DamageError
from shards.manifest import ShardInfo
from shards.ragged import offsets_from_lengths, ranges
from shards.reader import ShardSet

if TYPE_CHECKING:
    from shards.mirror_cells import MirrorCell


Wait = Callable[[int], None]
"""Function that takes a shard with an uncommitted cell, and returns once it is committed."""

_FEW_ROWS = 8
"""Rows per cell below which slices of single rows are cheaper than a gather per cell."""


class ColumnReader:
    """Reads one column set by row number, through memory maps.

    The column set must be complete, unless ``wait`` is given: then a read of an uncommitted cell
    waits for it.

    Attributes:
        shard_set: the set the column belongs to.
        folder: the column set's folder.
        name: name of the column.
        made_from: everything that determines the values.
        fingerprint: hash of the name and ``made_from``.
        bounds: name of a tensor to the exclusive upper bound of its whole numbers; set by the
            caller that opens the column.
        repair: the command that makes, completes or replaces the column.
        tensors: name to (dtype, shape of one row or, for values, of one value).
    """

    def __init__(self, shard_set: ShardSet, info: ColumnInfo, wait: Wait | None = None) -> None:
        """Check that every cell is committed; use :meth:`open` or :meth:`open_folder` instead."""
        self.shard_set = shard_set
        self.folder = info.folder
        self.name = info.name
        self.made_from = info.made_from
        self.fingerprint = info.fingerprint
        self.num_rows = shard_set.num_rows
        self._shards = shard_set.manifest.shards
        self._starts = shard_set.shard_starts
        self._kept: dict[str, dict[str, np.ndarray]] = {}
        self._names: dict[int, frozenset[str]] = {}
        self._cells: dict[int, Cell | MirrorCell] = {}
        self._wait = wait
        self.bounds: dict[str, int] = {}
        self.tensors: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self.repair = repair = repair_command(shard_set, self.name, self.made_from)
        if info.made_from.get("shard_set") != shard_set.fingerprint:
            raise ColumnError(
                f"the column {info.folder} was made from another version of the shard set: "
                f"shard_set is {info.made_from.get('shard_set')!r} in the column, "
                f"the set's fingerprint is {shard_set.fingerprint!r}; run `{repair}`"
            )
        missing = self._missing()
        if missing and wait is None:
            raise ColumnError(
                f"the column {info.folder} is not complete: {len(missing)} of "
                f"{len(self._shards)} shards have no committed cell, "
                f"the first is {missing[0].name}; run `{repair}`"
            )
        # Any cell shows the tensors; while the column is being filled, take a committed cell.
        first = self._cell(min(self._names, default=0)).places if self._shards else {}
        self.tensors = {name: (place.dtype, place.shape[1:]) for name, place in first.items()}
        wrong_tensor = kind_of(info.name).wrong_tensor
        problem = wrong_tensor(info.made_from, self.tensors) if self.tensors else None
        if problem is not None:
            raise DamageError(
                f"{info.folder} was edited: {problem}; delete its commit records and run `{repair}`"
            )
        for mirrored in self.mirror_cells().values():
            self._check_alike(mirrored.places, mirrored.url)

    def _missing(self) -> list[ShardInfo]:
        """Find shards without a committed cell; fetch what a remote column always needs."""
        missing = []
        known: dict[frozenset[str], frozenset[str]] = {}  # cells have the same few sets of names
        for number, shard in enumerate(self._shards):
            record = read_record(self.folder, self.fingerprint, shard)
            if record is None:
                missing.append(number)
            else:
                names = frozenset(record.crc32)
                self._names[number] = known.setdefault(names, names)
        mirror = self.shard_set.mirror
        if missing and mirror is not None and mirror.is_elsewhere(self.folder):
            from shards.mirror import in_parallel
            from shards.mirror_cells import bring_small_tensors

            in_parallel(self._open_elsewhere, missing)
            bring_small_tensors(self.mirror_cells().values())
            mirror.add_extras(self.folder)
            missing = [number for number in missing if number not in self._cells]
            for number, cell in self.mirror_cells().items():
                self._names[number] = frozenset(cell.places)
        return [self._shards[number] for number in missing]

    def _open_elsewhere(self, number: int) -> None:
        from shards.mirror_cells import open_mirror_cell

        assert self.shard_set.mirror is not None
        cell = open_mirror_cell(
            self.shard_set.mirror,
            self.folder,
            self.fingerprint,
            self._shards[number],
            check=self.shard_set.check_columns,
            bounds=self.bounds,
        )
        if cell is not None:
            self._cells[number] = cell

    def mirror_cells(self) -> "dict[int, MirrorCell]":
        """Return the remote cells, by shard; empty for a local column."""
        return {s: cell for s, cell in self._cells.items() if not isinstance(cell, Cell)}

    @classmethod
    def open(
        cls,
        shard_set: ShardSet,
        name: str,
        made_from: Mapping[str, Any] | None = None,
        wait: Wait | None = None,
    ) -> "ColumnReader":
        """Open the column set called ``name`` that was made from ``made_from``.

        Args:
            shard_set: the set.
            name: name of the column.
            made_from: everything that determines the values; None takes the only column set of
                that name.
            wait: see :class:`ColumnReader`; None refuses an incomplete column set.

        Raises:
            ColumnError: there is no such column set, there are several, its fields differ (the
                message names them), or it is incomplete; the message has the command that helps.
        """
        repair = repair_command(shard_set, name, made_from)
        if shard_set.mirror is not None and made_from is not None:
            shard_set.mirror.add_column(describe(shard_set, name, made_from).folder.name)
        found = list_columns(shard_set, name)
        if not found:
            raise ColumnError(f"{shard_set.location} has no column {name!r}; run `{repair}`")
        if made_from is not None:
            asked = describe(shard_set, name, made_from)
            exact = [info for info in found if info.fingerprint == asked.fingerprint]
            if exact:
                return cls(shard_set, exact[0], wait)
            near = min(found, key=lambda i: len(differing_fields(i.made_from, asked.made_from)))
            phrases = "; ".join(differing_fields(near.made_from, asked.made_from))
            raise ColumnError(
                f"{shard_set.location} has no column {name!r} made from the requested settings. "
                f"The nearest is {near.folder.name}: {phrases}; run `{repair}` with these settings"
            )
        current = [i for i in found if i.made_from.get("shard_set") == shard_set.fingerprint]
        if len(current) > 1:
            folders = ", ".join(info.folder.name for info in current)
            setting = "with --data.tokens NAME " if name == "tokens" else ""
            raise ColumnError(
                f"{shard_set.location} has {len(current)} columns {name!r}: {folders}; name "
                f"one {setting}or remove one: tnr shards columns {shard_set.location} --remove NAME"
            )
        return cls(shard_set, (current or found)[0], wait)

    @classmethod
    def open_folder(cls, shard_set: ShardSet, folder_name: str) -> "ColumnReader":
        """Open a column set by the name of its folder, such as ``tokens-0123456789ab``.

        Raises:
            ColumnError: the folder is missing, belongs to another set, or is incomplete.
        """
        if shard_set.mirror is not None:
            shard_set.mirror.add_column(folder_name)
        folder = shard_set.columns_dir / folder_name
        if Path(folder_name).name != folder_name or not folder.is_dir():
            known = ", ".join(info.folder.name for info in list_columns(shard_set)) or "none"
            raise ColumnError(
                f"{shard_set.location} has no column folder {folder_name!r}; it has: {known}"
            )
        return cls(shard_set, read_info(folder))

    def _cell(self, shard: int) -> "Cell | MirrorCell":
        cell = self._cells.get(shard)
        if cell is None:
            info = self._shards[shard]
            cell = self._opened(info)
            if cell is None and self._wait is not None:
                self._wait(shard)
                cell = self._opened(info)
            if cell is None:
                raise ColumnError(
                    f"the cell of {info.name} in {self.folder} no longer exists; "
                    f"run `{self.repair}`"
                )
            self._check_alike(cell.places, cell.path)
            self._cells[shard] = cell
            self._names.setdefault(shard, frozenset(cell.places))
        return cell

    def _opened(self, info: ShardInfo) -> Cell | None:
        return open_cell(
            self.folder,
            self.fingerprint,
            info,
            check=self.shard_set.check_columns,
            repair=self.repair,
            bounds=self.bounds,
        )

    def _check_alike(self, places: Mapping[str, TensorPlace], where: object) -> None:
        if (problem := unlike(places, self.tensors)) is not None:
            raise DamageError(
                f"{where}: {problem}; delete the commit record beside it and run `{self.repair}`"
            )

    def cells_with(self, tensor: str) -> list[int]:
        """Return the shards whose cells hold an optional tensor."""
        return [s for s in range(len(self._shards)) if tensor in self._names.get(s, ())]

    def cell(self, shard: int) -> Mapping[str, np.ndarray]:
        """Return all tensors of one shard, as read-only views of the mapped file.

        Raises:
            ColumnError: the cell no longer exists.
            DamageError: the cell's file is damaged.
        """
        cell = self._cell(shard)
        cell.check_not_cut()
        return cell.tensors

    def _tensor(self, cell: Mapping[str, np.ndarray], tensor: str) -> np.ndarray:
        if tensor not in cell:
            self._refuse(tensor)
        return cell[tensor]

    def _refuse(self, tensor: str) -> NoReturn:
        raise ColumnError(
            f"the column {self.folder.name} has no tensor {tensor!r}; it has {sorted(self.tensors)}"
        )

    def keep(self, name: str) -> None:
        """Copy a ragged tensor of all cells into memory, laid end to end.

        Scattered rows then cost one gather instead of one per shard. This is meant for small data
        that is read from everywhere, like the titles of negatives (85 MB for two million).

        Args:
            name: name of the tensor, without ``.values``.

        Raises:
            ColumnError: there is no such tensor, or a cell no longer exists.
        """
        if name in self._kept or not self._shards:
            return
        cells = [self.cell(shard) for shard in range(len(self._shards))]
        values = np.concatenate([self._tensor(cell, name + VALUES) for cell in cells])
        lengths = np.concatenate([np.diff(self._tensor(cell, name + OFFSETS)) for cell in cells])
        self._kept[name] = {name + VALUES: values, name + OFFSETS: offsets_from_lengths(lengths)}

    def _by_shard(
        self, rows: np.ndarray, name: str = ""
    ) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]]:
        """Yield, per shard, its tensors, positions in ``rows`` int64[k] and rows in it int64[k].

        A ragged tensor that is kept in memory gives a single group.
        """
        if not len(rows):
            return
        shards = self._shards_of(rows)
        if name in self._kept:
            yield self._kept[name], np.arange(len(rows)), rows
            return
        order = np.argsort(shards, kind="stable")
        touched, begins = np.unique(shards[order], return_index=True)
        for shard, places in zip(touched, np.split(order, begins[1:]), strict=True):
            yield self.cell(int(shard)), places, rows[places] - self._starts[shard]

    def gather(self, tensor: str, rows: np.ndarray) -> np.ndarray:
        """Gather rows of a tensor, [n, ...] in its stored dtype, in their given order.

        Raises:
            ColumnError: there is no such tensor.
            IndexError: a row is outside the set.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if tensor not in self.tensors:
            self._refuse(tensor)
        dtype, shape = self.tensors[tensor]
        if self._is_scattered(rows):
            return self._gather_scattered(tensor, rows)
        out = np.empty((len(rows), *shape), dtype=dtype)
        for cell, places, local in self._by_shard(rows):
            out[places] = self._tensor(cell, tensor)[local]
        return out

    def _is_scattered(self, rows: np.ndarray) -> bool:
        """Tell whether the rows are few compared with the cells that they may touch."""
        return 1 < len(rows) < _FEW_ROWS * len(self._shards)

    def _gather_scattered(self, tensor: str, rows: np.ndarray) -> np.ndarray:
        """Do :meth:`gather` by slices of the mapped files."""
        dtype, shape = self.tensors[tensor]
        shards, inverse = np.unique(self._shards_of(rows), return_inverse=True)
        files, first = [], []
        for shard in shards.tolist():
            cell = self._cells.get(shard) or self._cell(shard)
            cell.check_not_cut()
            if isinstance(cell, Cell):
                if (begin := cell.begins.get(tensor)) is None:
                    self._tensor(cell.tensors, tensor)  # checks the tensor at its first use
                    begin = cell.begins[tensor]
                files.append(cell.bytes)
                first.append(begin)
            else:
                files.append(self._tensor(cell.tensors, tensor).data.cast("B"))
                first.append(0)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        begins = (np.array(first) - self._starts[shards] * size)[inverse] + rows * size
        spans = zip(inverse.tolist(), begins.tolist(), (begins + size).tolist(), strict=True)
        joined = bytearray().join([files[of][begin:end] for of, begin, end in spans])
        return np.frombuffer(joined, dtype).reshape(len(rows), *shape)

    def _shards_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the shard of each row, int64[n].

        Raises:
            IndexError: a row is outside the set.
        """
        if rows.min() < 0 or rows.max() >= self.num_rows:
            raise IndexError(
                f"rows lie within {rows.min()} .. {rows.max()}, the set has {self.num_rows}"
            )
        return np.searchsorted(self._starts, rows, side="right") - 1

    def lengths(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the lengths of the rows of a ragged tensor, int64[n]."""
        rows = np.asarray(rows, dtype=np.int64)
        out = np.zeros(len(rows), dtype=np.int64)
        for cell, places, local in self._by_shard(rows, name):
            offsets = self._tensor(cell, name + OFFSETS)
            out[places] = offsets[local + 1] - offsets[local]
        return out

    def gather_ragged(
        self, name: str, rows: np.ndarray, first: int | None = None, last: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gather rows of a ragged tensor: (values in the stored dtype, offsets int64[n + 1]).

        Args:
            name: name of the tensor, without ``.values``.
            rows: int64[n].
            first: largest number of values to take from the start of each row.
            last: largest number of values to take from the end of each row.

        Raises:
            ColumnError: there is no such tensor.
            IndexError: a row is outside the set.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if name + VALUES not in self.tensors:
            self._refuse(name + VALUES)
        dtype, shape = self.tensors[name + VALUES]
        lengths = np.zeros(len(rows), dtype=np.int64)
        parts = []
        for cell, places, local in self._by_shard(rows, name):
            offsets = self._tensor(cell, name + OFFSETS)
            begins, ends = offsets[local], offsets[local + 1]
            if first is not None:
                ends = np.minimum(ends, begins + first)
            if last is not None:
                begins = np.maximum(begins, ends - last)
            lengths[places] = ends - begins
            parts.append((self._tensor(cell, name + VALUES), places, begins))
        out_offsets = offsets_from_lengths(lengths)
        out = np.empty((int(out_offsets[-1]), *shape), dtype=dtype)
        for values, places, begins in parts:
            taken = lengths[places]
            out[ranges(out_offsets[places], taken)] = values[ranges(begins, taken)]
        return out, out_offsets

    def gather_ragged_into(
        self, out: np.ndarray, starts: np.ndarray, name: str, rows: np.ndarray
    ) -> None:
        """Write rows of a ragged tensor to an array: row i from ``out[starts[i]]`` on.

        Large data is thus copied only once. Other arguments and errors: see :meth:`gather_ragged`.
        """
        for cell, places, local in self._by_shard(rows, name):
            offsets = self._tensor(cell, name + OFFSETS)
            begins, taken = offsets[local], offsets[local + 1] - offsets[local]
            values = self._tensor(cell, name + VALUES)
            out[ranges(starts[places], taken)] = values[ranges(begins, taken)]
