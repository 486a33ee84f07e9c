"""Read a shard set: any sample by row number, or a shard completely.

Reads use ``pread`` at the offsets of the index, not the tar format. This is about twenty times
cheaper, and each read checks what a tar cannot: the member's name (so swapped shards are found) and
the CRC-32 of its data. Tars made elsewhere have arbitrary names; there the manifest's sha256 of the
index ties index and shard together, and the CRC-32 ties the data to both. A memory map would save a
microsecond per sample, but would kill the process if a shard was cut short, and would count every
page ever read as the process's memory.
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from zlib_ng import zlib_ng

from shards.cache import CacheSettings
from shards.damage import SampleDamage, Skip
from shards.errors import DamageError, DataError
from shards.fields import RowError
from shards.files import open_regular
from shards.index import RECORD, TAR_BLOCK, MemberIndex, read_index, read_member_index
from shards.layout import ArticleDecoder
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.open_shard import OpenShard
from shards.remote import is_url

if TYPE_CHECKING:
    from shards.mirror import Mirror

_MAX_OPEN_SHARDS = 64
_TRIES_ELSEWHERE = 3
_MAX_OPEN_ELSEWHERE = 4  # an open shard takes disk space even after the cache evicted it
# Looked up once: a read takes five microseconds, and each look-up a hundredth of that.
_unpack_record, _record_bytes = RECORD.unpack_from, RECORD.size
# zlib-ng's CRC-32 equals zlib's and is five times faster.
_pread, _crc32, _loads = os.pread, zlib_ng.crc32, orjson.loads


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
        path: The set's folder; for a remote set, the folder of its mirror.
        mirror: The mirror of a remote set, else None.
        manifest: The set's manifest.
        kind: A name in :data:`shards.set_kinds.KINDS`.
        fingerprint: sha256 (hex) that identifies the samples.
        num_rows: Number of samples N.
        shard_starts: int64 ``[S + 1]``; shard s holds the rows from ``shard_starts[s]`` (inclusive)
            to ``shard_starts[s + 1]`` (exclusive).
        columns_dir: Folder of the set's columns (it need not exist).
        check_columns: Whether readers of its columns check a tensor against its checksum at its
            first use.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        mirror: "Mirror | None" = None,
        *,
        check_columns: bool = True,
    ) -> None:
        """Store the parts; use :meth:`open` instead, which also checks that the files exist."""
        self.path = path
        self.check_columns = check_columns
        self.mirror = mirror
        self.manifest = manifest
        self.kind = manifest.kind
        self.fingerprint = manifest.fingerprint
        self.num_rows = manifest.num_rows
        counts = np.array([shard.samples for shard in manifest.shards], np.int64)
        self.shard_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self.columns_dir = path / "columns"
        self._starts: list[int] = self.shard_starts.tolist()
        self._lock = threading.Lock()
        self._opened: dict[int, OpenShard] = {}
        self._decoder = None if manifest.layout is None else ArticleDecoder(manifest.layout)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        cache: CacheSettings | None = None,
        check_files: bool = True,
        check_columns: bool = True,
    ) -> "ShardSet":
        """Open a shard set, and check its files against the manifest's sizes.

        Args:
            path: The set's folder, or the URL of a remote set, whose files are fetched and checked
                when they are needed.
            kind: The kind that the caller needs, if it matters.
            cache: Settings of the cache for a remote set; None takes the defaults.
            check_files: If False, damage of shards is found by the reads, for callers that read
                columns alone, or that may skip damaged samples.
            check_columns: See the attribute.

        Raises:
            DataError: ``path`` is not a shard set, or the set is of another kind.
            DamageError: The manifest is damaged, or a shard or an index is missing or has another
                size.
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
            return cls(folder, manifest, mirror, check_columns=check_columns)
        for shard in manifest.shards if check_files else ():
            _check_size(folder / shard.name, shard.bytes)
            _check_size(folder / shard.index_name, shard.index_size)
        return cls(folder, manifest, check_columns=check_columns)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.num_rows

    def __repr__(self) -> str:
        """Name the folder, the kind and the size."""
        return f"ShardSet({str(self.path)!r}, {self.kind}, {self.num_rows} rows)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the set again where it is unpickled, since descriptors and locks cannot be sent."""
        cache = None if self.mirror is None else self.mirror.settings
        return (_reopen, (self.location, self.fingerprint, cache, self.check_columns))

    @property
    def location(self) -> str:
        """The set's folder or URL, as an argument of a command."""
        return str(self.path) if self.mirror is None else self.mirror.url

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards in the order of the manifest."""
        return self.manifest.shards

    @property
    def num_shards(self) -> int:
        """The number of shards S."""
        return len(self.manifest.shards)

    def rows_of(self, shard: int) -> range:
        """Return the row numbers of ``shard``."""
        return range(int(self.shard_starts[shard]), int(self.shard_starts[shard + 1]))

    def locate(self, row: int) -> tuple[int, int]:
        """Return (shard, position in the shard) of a row.

        Raises:
            IndexError: The row is out of range.
        """
        if not 0 <= row < self.num_rows:
            raise IndexError(
                f"row {row} is not in {self.path}: it has rows 0 to {self.num_rows - 1}"
            )
        # Through int: a NumPy integer would make all following operations slow.
        shard = bisect_right(self._starts, row := int(row)) - 1
        return shard, row - self._starts[shard]

    def index(self, shard: int) -> np.ndarray:
        """Return the records of a shard's index (see :mod:`shards.index`).

        Returns:
            A structured array ``[n]``, or ``[n, M]`` for a set of tars made elsewhere.

        Raises:
            DamageError: The index is missing, has another size, or differs from the manifest's.
        """
        index = self._read_index(shard)
        return index.records if isinstance(index, MemberIndex) else index

    def key(self, row: int) -> str:
        """Return the WebDataset key of a row.

        Raises:
            IndexError: The row is out of range.
            DamageError: The index of its shard is damaged.
        """
        shard, place = self.locate(row)
        opened = self._opened.get(shard) or self._open_shard(shard, place, row)
        return sample_key(row) if opened.members is None else opened.members.key(place)

    def payload(self, row: int) -> bytes:
        """Return the JSON bytes of a row, checked.

        For a set of tars made elsewhere, these are the bytes of the article made from the members.

        Raises:
            IndexError: The row is out of range.
            DamageError: The stored bytes have changed; the message names the shard and the offset.
        """
        shard, place = self.locate(row)
        if self._decoder is not None:
            return orjson.dumps(self._article(shard, place, row))
        return self._read(shard, place, row)

    def sample(self, row: int) -> dict[str, Any]:
        """Return the sample of a row.

        Raises:
            IndexError: The row is out of range.
            DamageError: The stored bytes have changed.
        """
        shard, place = self.locate(row)
        if self._decoder is not None:
            return self._article(shard, place, row)
        payload = self._read(shard, place, row)
        try:
            sample = _loads(payload)
        except ValueError as error:
            raise DamageError(f"{self.path}, row {row}: the sample is not JSON: {error}") from error
        if type(sample) is not dict:
            raise DamageError(f"{self.path}, row {row}: the sample is not a JSON object")
        return sample

    def read(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Return the samples of some rows, in the order of ``rows``.

        Args:
            rows: Row numbers, for example int64[n]; may repeat.

        Raises:
            IndexError: A row is out of range.
            DamageError: The stored bytes of a sample have changed.
        """
        sample = self.sample
        return [sample(row) for row in (rows.tolist() if isinstance(rows, np.ndarray) else rows)]

    def samples(self, shard: int) -> Iterator[dict[str, Any]]:
        """Yield the samples of one shard in the order of their rows.

        Raises:
            DamageError: The stored bytes of a sample have changed; to continue after that, use
                :meth:`shards.damage.SkipBudget.samples`.
        """
        yield from map(self.sample, self.rows_of(shard))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every sample in the order of the rows."""
        for shard in range(self.num_shards):
            yield from self.samples(shard)

    def close(self) -> None:
        """Close the open files; they are opened again when needed."""
        with self._lock:
            self._opened.clear()

    def _read(self, shard: int, place: int, row: int) -> bytes:
        """Return the data of a sample in a set built by this package."""
        opened = self._opened.get(shard) or self._open_shard(shard, place, row)
        offset, length, crc32 = _unpack_record(opened.index, _record_bytes * place)
        data = b""
        # A damaged index may name any place; a read there could ask for gigabytes.
        if TAR_BLOCK <= offset <= opened.bytes - length:
            try:
                data = _pread(opened.descriptor, TAR_BLOCK + length, offset - TAR_BLOCK)
            except OSError as error:
                raise self._damage(shard, offset, row, _unreadable(error)) from error
        payload = data[TAR_BLOCK:]
        if len(payload) != length:
            cause = f"it ends before the {length} bytes of the sample"
        elif not data.startswith(b"%09d.json\0" % row):
            cause = f"the member there is not {member_name(row)}"
        elif _crc32(payload) != crc32:
            cause = "the checksum (crc32) does not fit"
        else:
            return payload
        raise self._damage(shard, offset, row, cause)

    def _article(self, shard: int, place: int, row: int) -> dict[str, Any]:
        """Make the article from the members of a sample made elsewhere."""
        opened = self._opened.get(shard) or self._open_shard(shard, place, row)
        index, decoder = opened.members, self._decoder
        if index is None or decoder is None:
            raise TypeError(f"{self.path} has no layout")
        contents: list[bytes | None] = []
        first = 0
        for member in range(index.members):
            offset, length, crc32 = index.record(place, member)
            if offset == 0:
                contents.append(None)
                continue
            first = first or offset
            data = b""
            if offset + length <= opened.bytes:
                try:
                    data = _pread(opened.descriptor, length, offset)
                except OSError as error:
                    raise self._damage(shard, offset, row, _unreadable(error)) from error
            if len(data) != length:
                cause = f"it ends before the {length} bytes of the member"
                raise self._damage(shard, offset, row, cause)
            if _crc32(data) != crc32:
                raise self._damage(shard, offset, row, "the checksum (crc32) does not fit")
            contents.append(data)
        try:
            return decoder.article(index.key(place), contents)
        except RowError as error:
            raise self._damage(shard, first, row, f"not an article: {error.reason}") from error

    def _read_index(self, shard: int) -> np.ndarray | MemberIndex:
        info, layout = self.manifest.shards[shard], self.manifest.layout
        if self.mirror is not None:
            self.mirror.bring_shard(shard)
        path = self.path / info.index_name
        if layout is None:
            return read_index(path, info.samples)
        return read_member_index(path, info, len(layout.members))

    def _open_shard(self, shard: int, place: int, row: int) -> OpenShard:
        with self._lock:
            if shard in self._opened:
                return self._opened[shard]
            index, descriptor = self._open_files(shard, place, row)
            info = self.manifest.shards[shard]
            opened = self._opened[shard] = OpenShard(descriptor, info.bytes, index)
            if len(self._opened) > (
                _MAX_OPEN_SHARDS if self.mirror is None else _MAX_OPEN_ELSEWHERE
            ):
                # The first one opened; its users keep it until they have finished.
                del self._opened[next(iter(self._opened))]
        return opened

    def _open_files(self, shard: int, place: int, row: int) -> tuple[np.ndarray | MemberIndex, int]:
        """Return a shard's index and a descriptor of its tar."""
        path = self.path / self.manifest.shards[shard].name
        for _ in range(1 if self.mirror is None else _TRIES_ELSEWHERE):
            index = self._read_index(shard)
            try:
                with open_regular(path) as file:
                    return index, os.dup(file.fileno())
            except DataError as error:
                if self.mirror is not None and isinstance(error.__cause__, FileNotFoundError):
                    continue  # evicted since it was fetched
                records = index.records[place] if isinstance(index, MemberIndex) else index[place]
                offset = int(records["offset"].flat[0])
                cause = f"the shard cannot be read: {error}"
                raise self._damage(shard, offset, row, cause) from error
        raise DataError(f"{path} is evicted as soon as it is fetched; raise data.cache_gib")

    def _damage(self, shard: int, offset: int, row: int, cause: str) -> SampleDamage:
        skip = Skip(self.shards[shard].name, int(offset), int(row), cause)
        if self.mirror is None:
            remedy = (
                "the tar or its index is damaged or was replaced; `tnr shards verify"
                f" {self.path}` shows what"
            )
        else:
            index = self.shards[shard].index_name
            remedy = f"delete it and {index} there, and both are fetched again"
        where = f"{self.path / skip.shard}, offset {offset} (row {row})"
        return SampleDamage(skip, f"{where}: {cause}; {remedy}")


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"


def _reopen(
    location: str, fingerprint: str, cache: CacheSettings | None, check_columns: bool
) -> ShardSet:
    """Open a set in another process; its files were checked in the first process."""
    shard_set = ShardSet.open(location, cache=cache, check_files=False, check_columns=check_columns)
    if shard_set.fingerprint != fingerprint:
        raise DataError(f"{location} was built again since this run opened it; start it again")
    return shard_set


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
