"""The vector of the empty title (all padding), in a file of a ``teacher-news`` column: an array in
NumPy's format, and after it the CRC-32 of its bytes."""

import io
import zlib
from pathlib import Path

import numpy as np

from shards.files import atomic_file
from shards.reader import ShardSet
from trainer.errors import DamageError

EMPTY = "empty.npy"
"""Name of the file. Those that were written before there was a checksum count as damaged."""
_CRC_BYTES = 4


def write_empty(folder: Path, vector_E: np.ndarray) -> None:
    """Publish the vector, as it is to be stored, in a column's folder."""
    buffer = io.BytesIO()
    np.save(buffer, vector_E, allow_pickle=False)
    array = buffer.getvalue()
    with atomic_file(folder / EMPTY) as file:
        file.write(array + _checksum(array))


def read_empty(shard_set: ShardSet, folder: Path) -> np.ndarray:
    """The vector [E] in a column's folder, as it was written.

    Raises:
        DamageError: It is not there, or not what was written; the message says what mends it.
    """
    if shard_set.mirror is not None and shard_set.mirror.is_elsewhere(folder):
        shard_set.mirror.add_extras(folder)
    mend = "tnr teachers cache makes it again, and encodes nothing else"
    try:
        data = (folder / EMPTY).read_bytes()
    except OSError as error:
        raise DamageError(f"cannot read {folder / EMPTY}: {error.strerror}; {mend}") from error
    array, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if checksum != _checksum(array):
        raise DamageError(f"{folder / EMPTY} has no checksum (crc32) or another one; {mend}")
    vector_E: np.ndarray = np.load(io.BytesIO(array), allow_pickle=False)
    return vector_E


def _checksum(array: bytes) -> bytes:
    return zlib.crc32(array).to_bytes(_CRC_BYTES, "little")
