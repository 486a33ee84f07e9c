"""Read and write a shard's index: each sample's place in the tar, and its checksum.

Format of an ``.idx`` file: one record of 16 bytes per sample, in the order of the tar, with nothing
before or after; little-endian throughout:

======  ====  =======================================================================
field   type  meaning
======  ====  =======================================================================
offset  u64   first byte of the member's data, counted from the start of the tar
length  u32   length of the data in bytes (the padding after it is not counted)
crc32   u32   CRC-32 (zlib) of the data
======  ====  =======================================================================

The size of the file therefore gives the number of samples. WebDataset readers ignore the file.

The index of a tar made elsewhere (a set with a layout, see :mod:`shards.layout`) has M records per
sample, one for each of the layout's members in its order (a record of zeros means that the sample
lacks the member), and the samples' keys:

========  =================  ====================================================
field     type               meaning
========  =================  ====================================================
magic     8 bytes            ``TNRIDX2`` and a newline
members   u32                M
unused    u32                0
samples   u64                n
records   n x M x 16 bytes   as above, sample by sample
key ends  n x u32            where each key ends in ``keys``
keys      bytes              all keys, UTF-8, one behind the other
========  =================  ====================================================
"""

import hashlib
import io
import struct
import zlib
from array import array
from pathlib import Path

import numpy as np

from shards.errors import DamageError, DataError
from shards.files import atomic_file, read_bytes
from shards.manifest import ShardInfo

TAR_BLOCK = 512
MAX_INDEX_BYTES = 1 << 30
"""Largest index that is read if the number of samples is unknown."""
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
RECORD = struct.Struct("<QII")
MEMBER_INDEX_MAGIC = b"TNRIDX2\n"
_MEMBER_HEADER = struct.Struct("<8sIIQ")
_KEY_END = struct.Struct("<I")


def padded(length: int) -> int:
    """Return the number of bytes that ``length`` bytes of data take in a tar."""
    return -(-length // TAR_BLOCK) * TAR_BLOCK


class IndexBuilder:
    """Collects one shard's index while the shard's tar is written."""

    def __init__(self) -> None:
        """Start without samples; each sample takes 16 bytes of memory."""
        self._buffer = io.BytesIO()
        self.samples = 0

    def add(self, offset: int, payload: bytes) -> None:
        """Record the next sample: ``payload`` starts at byte ``offset`` of the tar."""
        self._buffer.write(RECORD.pack(offset, len(payload), zlib.crc32(payload)))
        self.samples += 1

    def to_bytes(self) -> bytes:
        """Return the index in its stored form."""
        return self._buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write the index to ``path``, atomically."""
        with atomic_file(path) as file:
            file.write(self.to_bytes())


def read_index(path: Path, samples: int | None = None) -> np.ndarray:
    """Read an index as a structured array ``[n]`` with ``offset``, ``length`` and ``crc32``.

    The index is read into memory, not mapped: it has only 16 bytes per sample, and a file that is
    cut short meanwhile then gives an error instead of a bus error.

    Args:
        path: The ``.idx`` file.
        samples: The expected number of samples, if known.

    Raises:
        DamageError: The file is missing, or does not have the size of ``samples`` records.
    """
    limit = MAX_INDEX_BYTES if samples is None else samples * INDEX_DTYPE.itemsize
    data = _read(path, limit)
    records, rest = divmod(len(data), INDEX_DTYPE.itemsize)
    if rest or (samples is not None and records != samples):
        expected = "a multiple of 16" if samples is None else str(samples * INDEX_DTYPE.itemsize)
        raise DamageError(
            f"the index {path} has {len(data)} bytes, expected {expected}: it is damaged or belongs"
            " to another shard; `tnr shards index` makes it again from the tar"
        )
    return np.frombuffer(data, INDEX_DTYPE)


class MemberIndexBuilder:
    """Collects the index of a tar made elsewhere, member by member.

    Samples are numbered in the order in which their keys first occur; unusable samples are dropped
    at the end.
    """

    def __init__(self, members: int) -> None:
        """Start without samples; ``members`` is M of the layout."""
        self._members = members
        self._records = bytearray()
        self._keys: list[bytes] = []

    def start(self, key: bytes) -> int:
        """Assign a number to the sample ``key`` and return it."""
        self._records += bytes(RECORD.size * self._members)
        self._keys.append(key)
        return len(self._keys) - 1

    def put(self, place: int, member: int, offset: int, data: bytes) -> None:
        """Record one member of the sample at ``place``: ``data`` starts at byte ``offset``."""
        at = RECORD.size * (place * self._members + member)
        RECORD.pack_into(self._records, at, offset, len(data), zlib.crc32(data))

    def record(self, place: int, member: int) -> tuple[int, int, int]:
        """Return (offset, length, crc32) as recorded; the offset is 0 if there is no record."""
        at = RECORD.size * (place * self._members + member)
        return RECORD.unpack_from(self._records, at)

    def to_bytes(self, keep: list[int]) -> bytes:
        """Return the index of the samples numbered ``keep`` in its stored form."""
        width = RECORD.size * self._members
        ends = array("I")
        total = 0
        for place in keep:
            total += len(self._keys[place])
            ends.append(total)
        head = _MEMBER_HEADER.pack(MEMBER_INDEX_MAGIC, self._members, 0, len(keep))
        records = b"".join(self._records[place * width : (place + 1) * width] for place in keep)
        key_ends = np.array(ends, "<u4").tobytes()
        return b"".join([head, records, key_ends, *(self._keys[place] for place in keep)])


class MemberIndex:
    """The index of a tar made elsewhere, read from a file.

    Raises:
        DamageError: The data are not an index of this many samples and members.
    """

    def __init__(self, data: bytes, samples: int, members: int, path: Path) -> None:
        """Check the header and the sizes."""
        self.data = data
        self.samples = samples
        self.members = members
        self._ends_at = _MEMBER_HEADER.size + samples * members * RECORD.size
        self._keys_at = self._ends_at + samples * _KEY_END.size
        fits = data[: _MEMBER_HEADER.size] == _MEMBER_HEADER.pack(
            MEMBER_INDEX_MAGIC, members, 0, samples
        )
        fits = fits and len(data) >= self._keys_at
        if not fits or len(data) != self._keys_at + (self._end(samples - 1) if samples else 0):
            raise DamageError(
                f"{path} is not the index of {samples} samples of {members} members; `tnr shards"
                f" index {path.parent}` makes it again from the tar"
            )

    @property
    def records(self) -> np.ndarray:
        """All records, a structured array ``[n, M]``."""
        count = self.samples * self.members
        flat = np.frombuffer(self.data, INDEX_DTYPE, count, _MEMBER_HEADER.size)
        return flat.reshape(self.samples, self.members)

    def record(self, place: int, member: int) -> tuple[int, int, int]:
        """Return (offset, length, crc32) of one member; offset 0 if it is absent."""
        at = _MEMBER_HEADER.size + RECORD.size * (place * self.members + member)
        return RECORD.unpack_from(self.data, at)

    def key(self, place: int) -> str:
        """Return the key of the sample at ``place``."""
        start = self._keys_at + (self._end(place - 1) if place else 0)
        return self.data[start : self._keys_at + self._end(place)].decode("utf-8")

    def _end(self, place: int) -> int:
        end: int = _KEY_END.unpack_from(self.data, self._ends_at + _KEY_END.size * place)[0]
        return end


def read_member_index(path: Path, shard: ShardInfo, members: int) -> MemberIndex:
    """Read the index of a tar made elsewhere.

    Args:
        path: The ``.idx`` file.
        shard: The shard's entry in the manifest; its sha256 is the only checksum of the keys.
        members: M of the layout.

    Raises:
        DamageError: The file is missing or differs from the manifest.
    """
    data = _read(path, shard.index_size)
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise DamageError(
            f"the index {path} is not the one of the manifest (sha256 differs): it is damaged or"
            f" belongs to another shard; `tnr shards index {path.parent}` makes it again"
        )
    return MemberIndex(data, shard.samples, members, path)


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bytes(path, limit=limit)
    except DataError as error:
        raise DamageError(
            f"the index {path} is missing or damaged: {error}; `tnr shards index {path.parent}`"
            " makes it again from the tar"
        ) from error
