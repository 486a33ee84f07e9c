"""Read cells of remote columns: each tensor is a memory-mapped file in the cache.

Most tensors are small (titles, clicks, vectors of titles) and are needed for any row, so they are
fetched once for the whole set. Tensors whose name begins with ``body`` are fetched when a row of
their shard is read, or ahead of that (:mod:`shards.ahead`), and evicted when space is needed. An
open map keeps its data even if its file is removed.
"""

import mmap
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from shards.cache import FETCHED, is_windowed
from shards.cell_record import (
    MAX_RECORD_BYTES,
    CellRecord,
    check_header,
    data_path,
    parse_record,
    record_path,
)
from shards.cell_tensors import (
    MAX_HEADER_BYTES,
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
from shards.files import open_regular, read_bytes
from shards.manifest import ShardInfo
from shards.mirror import COLUMNS, Mirror, in_parallel
from shards.remote import MissingError

_NO_BOUNDS: Mapping[str, int] = {}
_TENSOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FIRST_BYTES = 1 << 14  # enough for the header of any column of this project


class MirrorCell:
    """One committed remote cell; a tensor is mapped when it is first used.

    Args:
        mirror: The mirror of the set.
        folder: The column set's folder in the mirror.
        column: Fingerprint of the column set.
        shard: The shard of the cell.
        check: Whether a tensor is checked against its checksum when it is mapped.
        bounds: As in :class:`shards.cells.Cell`.

    Attributes:
        record: The cell's commit record.
        places: Place of each tensor in the remote file.
        tensors: Name to array, read-only.

    Raises:
        MissingError: The server has no such cell.
        DataError: The cell cannot be fetched, or does not match its record.
    """

    def __init__(
        self,
        mirror: Mirror,
        folder: Path,
        column: str,
        shard: ShardInfo,
        *,
        check: bool = True,
        bounds: Mapping[str, int] = _NO_BOUNDS,
    ) -> None:
        """Fetch the record and the header."""
        self.mirror = mirror
        self._checks = check
        self._bounds = bounds
        self.shard = shard
        self.folder = folder / FETCHED
        self._column = column
        self._name = f"{COLUMNS}/{folder.name}/{data_path(folder, shard).name}"
        self._record_name = f"{COLUMNS}/{folder.name}/{record_path(folder, shard).name}"
        self._record_path = self.folder / f"record@{shard.stem}"
        self._header_path = self.folder / f"header@{shard.stem}"
        self._lock = threading.Lock()
        self._maps: dict[str, np.ndarray] = {}
        self.record, header = self._open()
        self._held = header.start + self._record_path.stat().st_size
        self.places = header.places
        for name, place in self.places.items():
            if not _TENSOR_NAME.fullmatch(name) or place.end > self.record.bytes:
                raise DamageError(f"{self.url}: tensor {name!r} cannot be read")
        self.tensors = CellTensors(self)

    @property
    def url(self) -> str:
        """URL of the data file."""
        return f"{self.mirror.url}/{self._name}"

    def _open(self) -> tuple[CellRecord, CellHeader]:
        """Read record and header from the cache or from the server."""
        for attempt in range(2):
            self._bring_record()
            try:
                data = read_bytes(self._record_path, limit=MAX_RECORD_BYTES)
                record = parse_record(data, self._column, self.shard, self._record_name)
                data = read_bytes(self._header_path, limit=MAX_HEADER_BYTES + 8)
                header = parse_header(data, self.url)
                check_header(self.url, header, record)
            except DataError as error:
                self.forget()
                if attempt:
                    raise DamageError(
                        f"{self.mirror.url}/{self._record_name} is not the commit record of its"
                        f" data file, or not of this shard ({error}); the remote column is"
                        " damaged or still being written"
                    ) from error
            else:
                return record, header
        raise AssertionError("unreachable")

    def _bring_record(self) -> None:
        cache, read = self.mirror.cache, self.mirror.remote.read
        with cache.fetching(self._record_path) as needed:
            if needed:
                cache.write(self._record_path, read(self._record_name, bytes))
        with cache.fetching(self._header_path) as needed:
            if needed:
                cache.write(self._header_path, self._fetch_header())

    def _fetch_header(self) -> bytes:
        read = self.mirror.remote.read

        def check(data: bytes) -> tuple[int, bytes]:
            return header_bytes(data, "it"), data

        # A small file may end within the first bytes; both file systems then return what exists.
        length, data = read(self._name, check, 0, _FIRST_BYTES)
        if len(data) < length:
            length, data = read(self._name, check, 0, length)
        return data[:length]

    def forget(self) -> None:
        """Drop record and header, so that they are fetched again."""
        self._record_path.unlink(missing_ok=True)
        self._header_path.unlink(missing_ok=True)

    def path(self, tensor: str) -> Path:
        """Return a tensor's path, which has the content's hash: new content is a new file."""
        return self.folder / f"{tensor}@{self.record.content[:12]}@{self.shard.stem}"

    def size(self, tensor: str) -> int:
        """Return the number of bytes of a tensor."""
        return self.places[tensor].end - self.places[tensor].begin

    @property
    def small_bytes(self) -> int:
        """Return the bytes of all tensors that stay cached while the set is open."""
        small = set(self.places) - set(self.windowed())
        return self._held + sum(map(self.size, small))

    def windowed(self) -> list[str]:
        """Return the names of tensors that are fetched and evicted by window."""
        return [name for name in self.places if is_windowed(self.path(name))]

    def bring(self, names: Iterable[str]) -> None:
        """Fetch tensors that are not in the cache.

        Raises:
            DataError: Tensors cannot be fetched, or do not match the record.
        """
        whole: bytes | None = None  # from a server without range requests
        for name in names:
            path = self.path(name)
            if self.mirror.touch(path):
                continue
            with self.mirror.cache.fetching(path) as needed:
                if needed and whole is not None:
                    self._keep(name, whole)
                elif needed:
                    whole = self._fetch(name)

    def _fetch(self, name: str) -> bytes | None:
        """Fetch and keep one tensor; return the whole file if the server sent it all."""
        place = self.places[name]

        def check(data: bytes) -> bytes | None:
            self._keep(name, data)
            return data if len(data) == self.record.bytes else None

        return self.mirror.remote.read(self._name, check, place.begin, place.end)

    def _keep(self, name: str, data: bytes) -> None:
        place = self.places[name]
        view = memoryview(data)
        if len(view) == self.record.bytes != self.size(name):
            view = view[place.begin : place.end]
        if len(view) != self.size(name):
            raise DamageError(f"received {len(view)} bytes of {name}, expected {self.size(name)}")
        if zlib_ng.crc32(view) != self.record.crc32[name]:
            self.forget()
            raise DamageError(
                f"the checksum (crc32) of {name} is not that of the commit record: damaged, or"
                " written again since this run opened it"
            )
        self.mirror.cache.write(self.path(name), view)

    def array(self, name: str) -> np.ndarray:
        """Return a tensor; fetch it if it is not in the cache.

        Raises:
            DamageError: The file in the cache was cut.
        """
        path, place = self.path(name), self.places[name]
        for _ in range(3):
            array = self._maps.get(name)
            if array is not None and (not is_windowed(path) or self.mirror.touch(path)):
                return array
            self.bring([name])
            try:
                array = _map(path, place)
            except DataError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # evicted between the fetch and the map
                raise
            self._check(name, array)
            with self._lock:
                self._maps[name] = array
            return array
        raise ColumnError(f"{path} is evicted as soon as it is fetched; raise data.cache_gib")

    def _check(self, name: str, array: np.ndarray) -> None:
        """Check a tensor that was just mapped, because its cached file may be old."""
        if self._checks and zlib_ng.crc32(tensor_bytes(array)) != self.record.crc32[name]:
            raise DamageError(
                f"{self.path(name)}: the checksum (crc32) of {name} in the cache is not the one of"
                f" {self._record_name}; delete the file, and it is fetched again"
            )
        values = self.places.get(name.removesuffix(OFFSETS) + VALUES)
        if name.endswith(OFFSETS) and values is not None:
            check_offsets(name, array, values.shape[0], self.url)
        if name in self._bounds:
            check_bound(name, array, self._bounds[name], self.url)

    def drop_evicted(self) -> None:
        """Close maps whose files were evicted, so that the disk regains the space."""
        with self._lock:
            for name in [n for n in self._maps if not self.path(n).exists()]:
                del self._maps[name]

    def check_not_cut(self) -> None:
        """Do nothing: the files of the cache are never written in place."""

    def damaged_tensors(self) -> list[str]:
        """Read everything; return the names of tensors whose CRC-32 differs from the record's."""
        self.bring(self.places)
        maps = {name: _map(self.path(name), place) for name, place in self.places.items()}
        crcs = {name: zlib_ng.crc32(tensor_bytes(array)) for name, array in maps.items()}
        return [name for name, crc32 in crcs.items() if crc32 != self.record.crc32[name]]


def _map(path: Path, place: TensorPlace) -> np.ndarray:
    count, size = int(np.prod(place.shape, dtype=np.int64)), place.end - place.begin
    if size == 0:
        return np.empty(place.shape, place.dtype)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size != size:
            path.unlink(missing_ok=True)
            raise DamageError(f"{path} was cut in the cache; it is removed; run the command again")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, place.dtype, count).reshape(place.shape)


def open_mirror_cell(
    mirror: Mirror, folder: Path, column: str, shard: ShardInfo, **options: Any
) -> MirrorCell | None:
    """Open a remote cell; return None if it is not committed on the server.

    The arguments are those of :class:`MirrorCell`.

    Raises:
        DataError: The cell cannot be fetched, or does not match its record.
    """
    if not mirror.is_elsewhere(folder):
        return None
    try:
        return MirrorCell(mirror, folder, column, shard, **options)
    except MissingError:
        return None


def bring_small_tensors(cells: Iterable[MirrorCell]) -> None:
    """Fetch all tensors that any row may need, over several connections.

    Raises:
        DataError: A tensor cannot be fetched, or does not match its record.
    """
    in_parallel(lambda cell: cell.bring(set(cell.places) - set(cell.windowed())), cells)
