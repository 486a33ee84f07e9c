"""Write and read one cell: a shard's tensors, and the commit record beside them.

The data file is published first, then the record beside it. A cell counts only if the record
exists, belongs to this column set and to this very shard, and if the data file has the record's
size and has the record's content hash in its header (:mod:`shards.cell_record`). A killed writer
therefore leaves an uncommitted cell. If two writers of one cell mix their files, the mixture is
detected as uncommitted and written again.

Cheap checks run whenever a cell is opened: sizes, types, shapes, and whether both files belong
together. The bytes of a tensor are checked against its CRC-32 at the first read.
"""

import errno
import hashlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from shards.cell_record import (
    MAX_RECORD_BYTES,
    CellRecord,
    check_header,
    content_of,
    data_path,
    digest_of,
    parse_record,
    record_path,
)
from shards.cell_tensors import (
    OFFSETS,
    VALUES,
    CellHeader,
    CellTensors,
    TensorPlace,
    check_bound,
    check_offsets,
    header_bytes,
    parse_header,
    tensor_bytes,
)
from shards.errors import ColumnError, DamageError, DataError
from shards.files import (
    allow_many_open_files,
    atomic_file,
    fsync_folder,
    open_regular,
    read_bytes,
    write_json_atomic,
)
from shards.manifest import ShardInfo

_ATTEMPTS = 3
_NO_BOUNDS: Mapping[str, int] = {}
_FIRST_BYTES = 4096  # enough for the header of any column of this project


def write_cell(
    folder: Path, column: str, shard: ShardInfo, tensors: Mapping[str, np.ndarray]
) -> CellRecord:
    """Publish the data file, then the commit record.

    Args:
        folder: the column set's folder.
        column: its fingerprint.
        shard: the shard the tensors belong to.
        tensors: checked before (see :class:`shards.columns.ColumnWriter`).

    Raises:
        ColumnError: the file system refused (full, read-only); the cell is then not committed.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    places = {name: TensorPlace(array.dtype, array.shape, 0, 0) for name, array in arrays.items()}
    record = CellRecord(
        column=column,
        shard=shard.name,
        shard_sha256=shard.sha256,
        rows=shard.samples,
        bytes=0,
        content="",
        sha256="",
        crc32={name: zlib_ng.crc32(tensor_bytes(array)) for name, array in arrays.items()},
        digest=digest_of(arrays),
    )
    content = content_of(record, places)
    payload = save(arrays, metadata={"content": content})
    sha256 = hashlib.sha256(payload).hexdigest()
    record = replace(record, content=content, bytes=len(payload), sha256=sha256)
    try:
        with atomic_file(data_path(folder, shard)) as file:
            file.write(payload)
        fsync_folder(folder)
        write_json_atomic(record_path(folder, shard), asdict(record))
    except OSError as error:
        raise ColumnError(
            f"cannot write {data_path(folder, shard)}: {error.strerror or error}; the cell is not "
            "committed; run the same command again once the folder is writable"
        ) from error
    return record


def read_record(folder: Path, column: str, shard: ShardInfo) -> CellRecord | None:
    """Read the commit record of a cell; return None if the cell is not committed.

    A cell is also not committed if its record is unreadable or belongs to another column set or to
    another version of the shard, or if its data file is missing, has another size, or has other
    content.
    """
    try:
        return check_record(folder, column, shard)
    except DataError:
        return None


def check_record(folder: Path, column: str, shard: ShardInfo) -> CellRecord:
    """Read the commit record of a cell, like :func:`read_record`.

    Raises:
        DataError: the cell is not committed; the message says why.
    """
    path = record_path(folder, shard)
    record = parse_record(read_bytes(path, limit=MAX_RECORD_BYTES), column, shard, path)
    size, header = _read_header(data_path(folder, shard))
    if size != record.bytes:
        raise DamageError(
            f"{data_path(folder, shard)} has {size} bytes, its commit record says {record.bytes}"
        )
    check_header(data_path(folder, shard), header, record)
    return record


def _read_header(path: Path) -> tuple[int, CellHeader]:
    """Read the size and the header of a safetensors file.

    Raises:
        DataError: the file cannot be read, or is not a safetensors file.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            data = file.read(_FIRST_BYTES)
            if len(data) < (length := header_bytes(data, path)):
                data += file.read(length - len(data))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return size, parse_header(data, path)


class Cell:
    """The memory-mapped tensors of one committed cell.

    A student with many teachers holds thousands of cells, so a cell keeps little: of its record
    only the checksums, and its tensors' places as one object shared by all cells with equal places.

    Args:
        folder: the column set's folder.
        shard: the shard of the cell.
        record: the cell's commit record.
        check: whether a tensor is read completely and checked at its first use.
        repair: the command that fills the column, for messages.
        bounds: name of a tensor to the exclusive upper bound of its whole numbers, which start at
            0; checked at the tensor's first use, independent of ``check``.

    Attributes:
        bytes: the mapped file.
        places: name of a tensor to its place in the file.
        begins: name of a tensor to its first byte, for tensors already used.

    Raises:
        DamageError: the file does not match the record.
    """

    __slots__ = (
        "_arrays", "_bounds", "_check", "_crc32", "_folder", "_map", "_repair", "_shard",
        "begins", "bytes", "places",
    )  # fmt: skip

    def __init__(
        self,
        folder: Path,
        shard: ShardInfo,
        record: CellRecord,
        *,
        check: bool = True,
        repair: str = "",
        bounds: Mapping[str, int] = _NO_BOUNDS,
    ) -> None:
        """Map the file; read only its header."""
        self._folder = folder
        self._shard = shard
        self._check = check
        self._bounds = bounds
        self._repair = repair
        self._arrays: dict[str, np.ndarray] = {}
        self.begins: dict[str, int] = {}
        self._map = self._mapped()
        if len(self._map) != record.bytes:
            raise DamageError(
                f"{self.path} has {len(self._map)} bytes, its commit record says {record.bytes}"
            )
        self.bytes = memoryview(self._map)
        length = header_bytes(self._map[:_FIRST_BYTES], self.path)
        header = parse_header(self._map[:length], self.path)
        check_header(self.path, header, record)
        self.places = _same_places(tuple(header.places.items()))
        self._crc32 = tuple(record.crc32[name] for name in self.places)
        for name, place in self.places.items():
            if place.end > len(self._map):
                raise DamageError(f"{self.path}: tensor {name} lies beyond the end of the file")

    def _mapped(self) -> mmap.mmap:
        allow_many_open_files()  # a map keeps its file open
        try:
            with open_regular(self.path) as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except DataError as error:
            if not _is_out_of_files(error.__cause__):
                raise DamageError(str(error)) from error
            raise self._too_many_files() from error
        except (OSError, ValueError) as error:
            if _is_out_of_files(error):
                raise self._too_many_files() from error
            raise DamageError(f"cannot map {self.path}: {error}") from error

    def _too_many_files(self) -> ColumnError:
        return ColumnError(
            f"cannot map {self.path}: this process may not open more files (one per cell); "
            "raise the limit (ulimit -n), or build the set with more samples per shard"
        )

    @property
    def path(self) -> Path:
        """The data file."""
        return data_path(self._folder, self._shard)

    @property
    def tensors(self) -> CellTensors:
        """Name to array: a read-only view of the mapped file, made at its first use."""
        return CellTensors(self)

    def array(self, name: str) -> np.ndarray:
        """Return one tensor.

        Raises:
            DamageError: the tensor is damaged, or its offsets do not rise.
        """
        found = self._arrays.get(name)
        return self._first_touch(name) if found is None else found

    def _first_touch(self, name: str) -> np.ndarray:
        """Map a tensor and check it."""
        self.check_not_cut()
        found = self._view(name)
        if self._check and not self._is_whole(name):
            raise DamageError(
                f"{self.path}: the checksum (crc32) of {name}, of shard {self._shard.name}, is not "
                f"the one of its commit record; {self.remedy}"
            )
        if name.endswith(OFFSETS):
            values = self.places.get(name.removesuffix(OFFSETS) + VALUES)
            if values is not None:
                check_offsets(name, found, values.shape[0], self.path)
        if name in self._bounds:
            check_bound(name, found, self._bounds[name], self.path)
        self._arrays[name] = found
        self.begins[name] = self.places[name].begin
        return found

    @property
    def remedy(self) -> str:
        """What to do if the data file is damaged."""
        record = record_path(self._folder, self._shard).name
        return f"delete {record} and run `{self._repair}`" if self._repair else f"delete {record}"

    def _view(self, name: str) -> np.ndarray:
        place = self.places[name]
        return np.ndarray(place.shape, place.dtype, self._map, place.begin)

    def _is_whole(self, name: str) -> bool:
        expected = self._crc32[list(self.places).index(name)]
        return bool(zlib_ng.crc32(tensor_bytes(self._view(name))) == expected)

    def check_not_cut(self) -> None:
        """Detect a file shortened in place, because reading the lost part kills the process.

        If a file is *replaced*, as this project's writers do, the mapped file stays unchanged.

        Raises:
            DamageError: the mapped file has become shorter.
        """
        now = self._map.size()  # of the mapped file, even if its name now belongs to another file
        if now < len(self._map):
            raise DamageError(
                f"{self.path} was cut to {now} bytes while it was being read "
                f"(its commit record says {len(self._map)})"
            )

    def damaged_tensors(self) -> list[str]:
        """Read everything; return the names of tensors whose CRC-32 differs from the record's."""
        self.check_not_cut()
        return [name for name in self.places if not self._is_whole(name)]

    def check_digest(self, record: CellRecord) -> None:
        """Read everything, and compare the hashes of the tensors and of the file.

        Raises:
            DamageError: a hash differs from the record's.
        """
        self.check_not_cut()
        digest = digest_of({name: self._view(name) for name in self.places})
        if digest != (record.content if record.digest is None else record.digest):
            raise DamageError(
                f"{self.path}: the hash of its tensors is not the one of its commit record; one of "
                f"them belongs to another column, or was edited: {self.remedy}"
            )
        if hashlib.sha256(self.bytes).hexdigest() != record.sha256:
            raise DamageError(
                f"{self.path}: its sha256 is not the one of its commit record; its header or the "
                f"record was edited: {self.remedy}"
            )


def _is_out_of_files(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EMFILE


@lru_cache(maxsize=1024)
def _same_places(items: tuple[tuple[str, TensorPlace], ...]) -> dict[str, TensorPlace]:
    """Share one object between cells whose tensors have equal places, by name."""
    return dict(items)


def open_cell(folder: Path, column: str, shard: ShardInfo, **options: Any) -> Cell | None:
    """Map a committed cell; return None if the cell is not committed.

    The arguments are those of :func:`read_record`; ``options`` are those of :class:`Cell`. Another
    writer of the same cell may replace both files between the two reads here, so a mismatch counts
    only if a second look confirms it.

    Raises:
        DamageError: the data file does not match its record.
    """
    for attempt in range(_ATTEMPTS):
        record = read_record(folder, column, shard)
        if record is None:
            return None
        try:
            return Cell(folder, shard, record, **options)
        except DamageError:
            if attempt == _ATTEMPTS - 1:
                raise
    return None


__all__ = [
    "Cell",
    "CellRecord",
    "check_record",
    "data_path",
    "open_cell",
    "read_record",
    "record_path",
    "write_cell",
]
