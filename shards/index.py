"""The index of one shard: where each sample's JSON lies in the tar, and its checksum.

Format of an ``.idx`` file: one record of 16 bytes a sample, in the order of the tar, nothing before
and nothing after; little-endian throughout:

======  ====  =======================================================================
field   type  meaning
======  ====  =======================================================================
offset  u64   first byte of the member's data, counted from the start of the tar
length  u32   length of the data in bytes (the padding after it is not counted)
crc32   u32   CRC-32 (zlib) of the data
======  ====  =======================================================================

So the size of the file gives the number of samples. Any WebDataset reader ignores the file.
"""

import io
import zlib
from pathlib import Path

import numpy as np

from shards.errors import DamageError
from shards.files import atomic_file

TAR_BLOCK = 512
INDEX_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])


def padded(length: int) -> int:
    """Return how many bytes ``length`` bytes of data take in a tar."""
    return -(-length // TAR_BLOCK) * TAR_BLOCK


class IndexBuilder:
    """Collects one shard's index while its tar is being written."""

    def __init__(self) -> None:
        """Start with no samples; 16 bytes a sample are held."""
        self._buffer = io.BytesIO()
        self.samples = 0

    def add(self, offset: int, payload: bytes) -> None:
        """Record the next sample: ``payload`` starts at byte ``offset`` of the tar."""
        record = np.array([(offset, len(payload), zlib.crc32(payload))], INDEX_DTYPE)
        self._buffer.write(record.tobytes())
        self.samples += 1

    def to_bytes(self) -> bytes:
        """Return the index as it is stored."""
        return self._buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write the collected index to ``path``, atomically."""
        with atomic_file(path) as file:
            file.write(self.to_bytes())


def read_index(path: Path, samples: int | None = None) -> np.ndarray:
    """Read an index as a structured array ``[n]`` with ``offset``, ``length`` and ``crc32``.

    It is read into memory, not mapped: 16 bytes a sample, and a file cut short by someone else
    then gives an error rather than a bus error.

    Args:
        path: The ``.idx`` file.
        samples: The number of samples it must have, where that is known.

    Raises:
        DamageError: If the file is missing, or its size is not that of ``samples`` records.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamageError(f"cannot read the index {path}: {error.strerror or error}") from error
    records, rest = divmod(len(data), INDEX_DTYPE.itemsize)
    if rest or (samples is not None and records != samples):
        expected = "a multiple of 16" if samples is None else str(samples * INDEX_DTYPE.itemsize)
        raise DamageError(
            f"the index {path} has {len(data)} bytes, expected {expected}: it is damaged or belongs"
            " to another shard; `tnr shards index` makes it again from the tar"
        )
    return np.frombuffer(data, INDEX_DTYPE)
