"""One cell of a column set: the tensors of one shard in a safetensors file, and its commit record.

The data file is published first, then the record beside it. A cell counts only when the record is
there, belongs to this column set and this very shard, and the data file has the record's size and
carries the record's content hash in its header. So a killed writer leaves an uncommitted cell, and
of two writers of one cell whose files got mixed, the mixture is seen as uncommitted and written
again.
"""

import errno
import hashlib
import json
import mmap
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shards.cell_tensors import CellTensors, TensorPlace
from shards.errors import ColumnError, DamageError
from shards.files import allow_many_open_files, atomic_file, fsync_folder, write_json_atomic
from shards.manifest import ShardInfo

_HEADER_LENGTH = struct.Struct("<Q")
_ATTEMPTS = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What a commit record says."""

    column: str
    """Fingerprint of the column set."""
    shard: str
    """File name of the shard the cell belongs to."""
    shard_sha256: str
    rows: int
    bytes: int
    content: str
    """sha256 over the tensors; also in the header of the data file."""
    sha256: str
    """sha256 of the data file."""
    crc32: dict[str, int]
    """CRC-32 of each tensor's bytes."""


def data_path(folder: Path, shard: ShardInfo) -> Path:
    """The safetensors file of a cell."""
    return folder / f"{shard.stem}.safetensors"


def record_path(folder: Path, shard: ShardInfo) -> Path:
    """The commit record of a cell."""
    return folder / f"{shard.stem}.json"


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


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
    digest = hashlib.sha256()
    crcs = {}
    for name, array in arrays.items():
        view = _bytes(array)
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(view)
        crcs[name] = zlib.crc32(view)
    content = digest.hexdigest()
    payload = save(arrays, metadata={"content": content})
    record = CellRecord(
        column=column,
        shard=shard.name,
        shard_sha256=shard.sha256,
        rows=shard.samples,
        bytes=len(payload),
        content=content,
        sha256=hashlib.sha256(payload).hexdigest(),
        crc32=crcs,
    )
    try:
        with atomic_file(data_path(folder, shard)) as file:
            file.write(payload)
        fsync_folder(folder)
        write_json_atomic(record_path(folder, shard), asdict(record))
    except OSError as error:
        raise ColumnError(
            f"cannot write {data_path(folder, shard)}: {error.strerror or error}; the cell is not "
            "committed, run the same command again once the folder can be written"
        ) from error
    return record


def read_record(folder: Path, column: str, shard: ShardInfo) -> CellRecord | None:
    """The commit record of a cell, or None where the cell is not committed.

    Not committed is also a record that cannot be read, that belongs to another column set or to
    another version of the shard, or whose data file is missing, of another size, or of other
    content.
    """
    try:
        record = parse_record(record_path(folder, shard).read_bytes(), column, shard)
        size = data_path(folder, shard).stat().st_size
    except OSError:
        return None
    if record is None or size != record.bytes:
        return None
    try:
        header, _ = _read_header(data_path(folder, shard))
    except DamageError:
        return None
    return record if content_of(header) == record.content else None


def parse_record(data: bytes, column: str, shard: ShardInfo) -> CellRecord | None:
    """The commit record in these bytes; None if it is none, or not this cell's."""
    try:
        record = CellRecord(**json.loads(data))
    except (ValueError, TypeError):
        return None
    expected = (column, shard.name, shard.sha256, shard.samples)
    found = (record.column, record.shard, record.shard_sha256, record.rows)
    # The hash of what may come from elsewhere becomes a part of the names of files.
    if found != expected or not _SHA256.fullmatch(str(record.content)):
        return None
    return record


def content_of(header: dict[str, Any]) -> str | None:
    """The content hash that :func:`write_cell` put into the header."""
    metadata = header.get("__metadata__")
    return metadata.get("content") if isinstance(metadata, dict) else None


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begin.

    Raises:
        DamageError: it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_LENGTH.size)
            return parse_header(start + file.read(header_bytes(start) - len(start)))
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read as safetensors: {error}") from error


def header_bytes(data: bytes) -> int:
    """How many bytes the header takes of the safetensors file that begins with these.

    Raises:
        ValueError: it is none.
    """
    if len(data) < _HEADER_LENGTH.size:
        raise ValueError("it is too short to have a header")
    (length,) = _HEADER_LENGTH.unpack_from(data)
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header would have {length} bytes")
    return _HEADER_LENGTH.size + int(length)


def parse_header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file that begins with these bytes, and where its data begin.

    Raises:
        ValueError: it is none, or it is not all there.
    """
    start = header_bytes(data)
    header = json.loads(data[_HEADER_LENGTH.size : start])
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, start


def tensor_places(header: dict[str, Any], start: int, path: object) -> dict[str, TensorPlace]:
    """Where each tensor lies in the file that has this header.

    Raises:
        DamageError: an entry makes no sense; ``path`` is named.
    """
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = np.dtype(_DTYPES[entry["dtype"]])
            begin, end = entry["data_offsets"]
            count = int(np.prod(entry["shape"], dtype=np.int64))
            if begin < 0 or count * dtype.itemsize != end - begin:
                raise ValueError("its place in the file does not fit its shape")
            places[name] = TensorPlace(dtype, tuple(entry["shape"]), start + begin, start + end)
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{path}: tensor {name} cannot be read: {error}") from error
    return places


def check_names(path: object, places: Mapping[str, TensorPlace], record: CellRecord) -> None:
    """Check that a data file has the tensors that its commit record has.

    Raises:
        DamageError: it does not.
    """
    if set(places) != set(record.crc32):
        raise DamageError(
            f"{path} holds the tensors {sorted(places)}, "
            f"its commit record says {sorted(record.crc32)}"
        )


class Cell:
    """The memory-mapped tensors of one committed cell.

    A student with many teachers holds thousands of these, so they hold little: of the record only
    the checksums, and where tensors lie once for all cells where they lie alike.

    Args:
        folder: the column set's folder.
        shard: the shard of the cell.
        record: its commit record.

    Attributes:
        bytes: the mapped file.
        places: name to where the tensor lies in it.

    Raises:
        DamageError: the file does not hold what the record says.
    """

    __slots__ = ("_arrays", "_crc32", "_folder", "_map", "_shard", "bytes", "places")

    def __init__(self, folder: Path, shard: ShardInfo, record: CellRecord) -> None:
        """Map the file; nothing is read but its header."""
        self._folder = folder
        self._shard = shard
        self._arrays: dict[str, np.ndarray] = {}
        header, start = _read_header(self.path)
        if content_of(header) != record.content:
            raise DamageError(f"{self.path} is not the file that its commit record describes")
        allow_many_open_files()  # a map keeps its file open
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise ColumnError(
                    f"cannot map {self.path}: this process may not open more files (one a cell); "
                    "raise the limit (ulimit -n), or build the set with more samples a shard"
                ) from error
            raise DamageError(f"cannot map {self.path}: {error}") from error
        if len(self._map) != record.bytes:
            raise DamageError(
                f"{self.path} has {len(self._map)} bytes, its commit record says {record.bytes}"
            )
        self.bytes = memoryview(self._map)
        self.places = _same_places(tuple(tensor_places(header, start, self.path).items()))
        check_names(self.path, self.places, record)
        self._crc32 = tuple(record.crc32[name] for name in self.places)
        for name, place in self.places.items():
            if place.end > len(self._map):
                raise DamageError(f"{self.path}: tensor {name} lies beyond the end of the file")

    @property
    def path(self) -> Path:
        """The data file."""
        return data_path(self._folder, self._shard)

    @property
    def tensors(self) -> CellTensors:
        """Name to array, made when it is first asked for: a view of the mapped file, read-only."""
        return CellTensors(self)

    def array(self, name: str) -> np.ndarray:
        """One tensor."""
        found = self._arrays.get(name)
        if found is None:
            place = self.places[name]
            found = np.ndarray(place.shape, place.dtype, self._map, place.begin)
            self._arrays[name] = found
        return found

    def check_not_cut(self) -> None:
        """Notice a file that was shortened in place, before a read of the lost part kills the
        process.

        A file *replaced* by another, as our writers do it, leaves the mapped one as it was.

        Raises:
            DamageError: the mapped file has become shorter.
        """
        now = self._map.size()  # of the file that was mapped, whatever lies under its name now
        if now < len(self._map):
            raise DamageError(
                f"{self.path} was cut to {now} bytes while it was being read "
                f"(its commit record says {len(self._map)})"
            )

    def damaged_tensors(self) -> list[str]:
        """Read everything; the names of the tensors whose CRC-32 is not the record's."""
        self.check_not_cut()
        return [
            name
            for name, crc32 in zip(self.places, self._crc32, strict=True)
            if zlib.crc32(_bytes(self.array(name))) != crc32
        ]


@lru_cache(maxsize=1024)
def _same_places(items: tuple[tuple[str, TensorPlace], ...]) -> dict[str, TensorPlace]:
    """Where tensors lie, by name: one object for equal places."""
    return dict(items)


def open_cell(folder: Path, column: str, shard: ShardInfo) -> Cell | None:
    """Map a committed cell; None where it is not committed. Arguments as in :func:`read_record`.

    Another writer of the same cell may replace both files between our reading the one and the
    other, so a mismatch is looked at again before it counts.

    Raises:
        DamageError: the data file does not hold what its record says.
    """
    for attempt in range(_ATTEMPTS):
        record = read_record(folder, column, shard)
        if record is None:
            return None
        try:
            return Cell(folder, shard, record)
        except DamageError:
            if attempt == _ATTEMPTS - 1:
                raise
    return None
