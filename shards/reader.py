"""Reading a shard set: any sample by its row number, or a shard from end to end.

Reads go by ``pread`` at the offsets of the index, not through the tar format: that is some twenty
times cheaper, and each read checks what a tar cannot: the member's name (so a shard that changed
places with another is found) and the CRC-32 of its data.
"""

import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.cache import CacheSettings
from shards.errors import DamageError, DataError
from shards.index import INDEX_DTYPE, TAR_BLOCK, read_index
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.remote import is_url

if TYPE_CHECKING:
    from shards.mirror import Mirror

_MAX_OPEN_SHARDS = 64
_MAX_OPEN_ELSEWHERE = 4  # an open shard takes disk even when it was evicted from the cache


def sample_key(row: int) -> str:
    """Return the WebDataset key of a row: its number in nine digits."""
    return f"{row:09d}"


def member_name(row: int) -> str:
    """Return the name of a row's member in its tar."""
    return sample_key(row) + ".json"


class ShardSet:
    """An immutable set of samples in shards, read by row number.

    Safe to use from several threads, and picklable: a copy in another process opens its own files.

    Attributes:
        path: The set's folder; of a set elsewhere, that of its mirror.
        mirror: The mirror of a set elsewhere, else None.
        manifest: Its manifest.
        kind: ``articles`` or ``impressions``.
        fingerprint: sha256 (hex) of what the samples are.
        num_rows: Number of samples N.
        shard_starts: int64 ``[S + 1]``; shard s holds the rows from ``shard_starts[s]`` up to,
            and without, ``shard_starts[s + 1]``.
        columns_dir: Folder of the set's columns (it need not exist).
    """

    def __init__(self, path: Path, manifest: Manifest, mirror: "Mirror | None" = None) -> None:
        """Use :meth:`open`, which also checks that the files are there."""
        self.path = path
        self.mirror = mirror
        self.manifest = manifest
        self.kind = manifest.kind
        self.fingerprint = manifest.fingerprint
        self.num_rows = manifest.num_rows
        counts = np.array([shard.samples for shard in manifest.shards], np.int64)
        self.shard_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.columns_dir = path / "columns"
        self._lock = threading.Lock()
        self._files: OrderedDict[int, int] = OrderedDict()
        self._indexes: dict[int, np.ndarray] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        cache: CacheSettings | None = None,
    ) -> "ShardSet":
        """Open a shard set and check that its files are there with the sizes of the manifest.

        Args:
            path: The set's folder, or the URL of a set elsewhere, whose files are brought over and
                checked when they are needed.
            kind: The kind that the caller needs (``articles`` or ``impressions``), if it matters.
            cache: Where to keep the files of a set elsewhere; None takes the defaults.

        Raises:
            DataError: If there is no shard set at ``path``, or it is of the other kind.
            DamageError: If the manifest is damaged, or a shard or an index is missing or has
                another size.
        """
        mirror = None
        if is_url(path):
            from shards.mirror import Mirror

            mirror = Mirror.open(str(path), cache or CacheSettings())
        folder = Path(path) if mirror is None else mirror.folder
        manifest = read_manifest(folder) if mirror is None else mirror.manifest
        if kind is not None and manifest.kind != kind:
            raise DataError(f"{path} holds {manifest.kind}, expected a set of {kind}")
        if mirror is not None:
            return cls(folder, manifest, mirror)
        for shard in manifest.shards:
            _check_size(folder / shard.name, shard.bytes)
            _check_size(folder / shard.index_name, shard.samples * INDEX_DTYPE.itemsize)
        return cls(folder, manifest)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.num_rows

    def __repr__(self) -> str:
        """Name the folder, the kind and the size."""
        return f"ShardSet({str(self.path)!r}, {self.kind}, {self.num_rows} rows)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the set again where it is unpickled: descriptors and locks do not travel."""
        if self.mirror is not None:
            return (_open_url, (self.mirror.url, self.mirror.settings))
        return (ShardSet.open, (str(self.path),))

    @property
    def location(self) -> str:
        """The set's folder or URL: what a command would name it by."""
        return str(self.path) if self.mirror is None else self.mirror.url

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards as the manifest lists them."""
        return self.manifest.shards

    @property
    def num_shards(self) -> int:
        """The number of shards S."""
        return len(self.manifest.shards)

    def rows_of(self, shard: int) -> range:
        """Return the row numbers that ``shard`` holds."""
        return range(int(self.shard_starts[shard]), int(self.shard_starts[shard + 1]))

    def locate(self, row: int) -> tuple[int, int]:
        """Return (shard, place in the shard) of a row.

        Raises:
            IndexError: If there is no such row.
        """
        if not 0 <= row < self.num_rows:
            raise IndexError(
                f"row {row} is not in {self.path}: it has rows 0 to {self.num_rows - 1}"
            )
        shard = int(np.searchsorted(self.shard_starts, row, side="right")) - 1
        return shard, row - int(self.shard_starts[shard])

    def index(self, shard: int) -> np.ndarray:
        """Return the index of a shard, read once (see :mod:`shards.index`).

        Raises:
            DamageError: If the index is missing or has another size.
        """
        if shard not in self._indexes:
            info = self.manifest.shards[shard]
            if self.mirror is not None:
                self.mirror.bring_shard(shard)
            self._indexes[shard] = read_index(self.path / info.index_name, info.samples)
        return self._indexes[shard]

    def payload(self, row: int) -> bytes:
        """Return the JSON bytes of a row, checked.

        Raises:
            IndexError: If there is no such row.
            DamageError: If the stored bytes are not the ones that were written; the message names
                the shard and the offset.
        """
        shard, place = self.locate(row)
        return self._read(shard, place, row)

    def sample(self, row: int) -> dict[str, Any]:
        """Return the sample of a row.

        Raises:
            IndexError: If there is no such row.
            DamageError: If the stored bytes are not the ones that were written.
        """
        return self._decode(self.payload(row), row)

    def samples(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield the samples of one shard in the order of their rows.

        Raises:
            DamageError: At the first sample whose bytes are not the ones that were written.
        """
        for place, row in enumerate(self.rows_of(shard)):
            yield self._decode(self._read(shard, place, row), row)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every sample in the order of the rows."""
        for shard in range(self.num_shards):
            yield from self.samples(shard)

    def close(self) -> None:
        """Close the open files; they are opened again when needed."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        """Close the open files."""
        if hasattr(self, "_files"):
            self.close()

    def _read(self, shard: int, place: int, row: int) -> bytes:
        offset, length, crc32 = self.index(shard)[place].item()
        data = b""
        # A damaged index may name any place; reading there could ask for gigabytes.
        if offset >= TAR_BLOCK and offset + length <= self.shards[shard].bytes:
            data = self._pread(shard, TAR_BLOCK + length, offset - TAR_BLOCK)
        name = member_name(row).encode("ascii") + b"\0"
        payload = data[TAR_BLOCK:]
        if len(payload) != length:
            cause = f"it ends before the {length} bytes of the sample"
        elif not data.startswith(name):
            cause = f"the member there is not {member_name(row)}"
        elif zlib.crc32(payload) != crc32:
            cause = "the checksum (crc32) does not fit"
        else:
            return payload
        raise DamageError(
            f"{self.path / self.shards[shard].name}, offset {offset} (row {row}): {cause}; the tar"
            f" or its index is damaged or was replaced; `tnr shards verify {self.path}` shows what"
        )

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        # The lock keeps another thread from closing the descriptor between look-up and read.
        with self._lock:
            descriptor = self._files.get(shard)
            if descriptor is None:
                descriptor = self._open_shard(shard)
            else:
                self._files.move_to_end(shard)
            try:
                return os.pread(descriptor, size, offset)
            except OSError as error:
                path = self.path / self.shards[shard].name
                raise DamageError(
                    f"cannot read {path} at offset {offset}: {error.strerror or error}"
                ) from error

    def _open_shard(self, shard: int) -> int:
        path = self.path / self.shards[shard].name
        if self.mirror is not None:
            self.mirror.bring_shard(shard)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DamageError(f"cannot read the shard {path}: {error.strerror or error}") from error
        self._files[shard] = descriptor
        if len(self._files) > (_MAX_OPEN_SHARDS if self.mirror is None else _MAX_OPEN_ELSEWHERE):
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _decode(self, payload: bytes, row: int) -> dict[str, Any]:
        try:
            sample = json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise DamageError(f"{self.path}, row {row}: the sample is not JSON: {error}") from error
        if not isinstance(sample, dict):
            raise DamageError(f"{self.path}, row {row}: the sample is not a JSON object")
        return sample


def _open_url(url: str, cache: CacheSettings) -> ShardSet:
    return ShardSet.open(url, cache=cache)


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamageError(
            f"{path} is in the manifest but cannot be read: {error.strerror or error}"
        ) from error
    if size != expected:
        raise DamageError(
            f"{path} has {size} bytes, the manifest says {expected}: it is damaged or was replaced;"
            f" `tnr shards verify {path.parent}` shows what"
        )
