"""Store a column set's other files with checksums: a tokenizer, and the empty title's vector.

``tokenizer.sha256`` lists the files of ``tokenizer/`` in the format of ``sha256sum --check``. The
vector is in a file of its own, ``empty.npy``, which ends in a CRC-32 that includes the folder's
name, so that the file of another column does not match.
"""

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.column_info import TOKENIZER_FOLDER
from shards.errors import ColumnError, DamageError, DataError
from shards.files import atomic_file, read_bytes, sha256_file
from shards.tokenizer import load_tokenizer, publish_tokenizer, tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMPTY = "empty.npy"
"""Name of the file with the vector of the empty title."""
TOKENIZER_SUMS = f"{TOKENIZER_FOLDER}.sha256"
_CRC_BYTES = 4
_MAX_VECTOR_BYTES = 1 << 24
_MAX_SUMS_BYTES = 1 << 20


def write_vector(folder: Path, vector_E: np.ndarray) -> None:
    """Write the vector, in its stored form, into a column's folder."""
    buffer = io.BytesIO()
    np.save(buffer, vector_E, allow_pickle=False)
    array = buffer.getvalue()
    with atomic_file(folder / EMPTY) as file:
        file.write(array + _crc32(array, folder.name))


def read_vector(folder: Path) -> np.ndarray:
    """Read the vector [E] in a column's folder.

    Files of older versions, whose checksum does not include the folder, are read too; files from
    before checksums count as damaged.

    Raises:
        DamageError: The vector is missing or damaged.
    """
    path = folder / EMPTY
    try:
        data = read_bytes(path, limit=_MAX_VECTOR_BYTES)
    except DataError as error:
        raise DamageError(str(error)) from error
    array, checksum = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if checksum not in (_crc32(array, folder.name), _crc32(array, "")):
        raise DamageError(f"{path} has no checksum (crc32), or a wrong one")
    try:
        vector_E: np.ndarray = np.load(io.BytesIO(array), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamageError(f"{path} does not hold an array: {error}") from error
    if vector_E.ndim != 1 or vector_E.dtype.kind != "f" or not np.isfinite(vector_E).all():
        raise DamageError(f"{path} does not hold a vector of finite numbers")
    return vector_E


def _crc32(array: bytes, name: str) -> bytes:
    return zlib.crc32(array, zlib.crc32(name.encode())).to_bytes(_CRC_BYTES, "little")


def keep_tokenizer(loaded: "PreTrainedTokenizerBase", sha256: str, folder: Path) -> None:
    """Save a column's tokenizer in its folder, with its checksums; keep an existing tokenizer.

    Args:
        loaded: The tokenizer.
        sha256: The tokenizer's hash, from :func:`shards.tokenizer.tokenizer_sha256`.
        folder: The column's folder.

    Raises:
        ColumnError: The existing tokenizer is another one, or was edited.
    """
    there, sums = folder / TOKENIZER_FOLDER, folder / TOKENIZER_SUMS
    is_unlisted = there.is_dir() and not sums.exists()
    publish_tokenizer(loaded, there)
    problem = None
    if is_unlisted and tokenizer_sha256(load_tokenizer(there)) != sha256:
        problem = f"{there} is not the tokenizer that the column was made with"
    elif not sums.exists():
        inside = sorted(path for path in there.iterdir() if path.is_file())
        with atomic_file(sums, "w") as file:
            file.writelines(map(_sum_line, inside))
    problem = problem or tokenizer_problem(folder)
    if problem is not None:
        raise ColumnError(f"{problem}; remove {there} and {sums}, and run the same command again")


def tokenizer_problem(folder: Path) -> str | None:
    """Name a missing or changed file of a column's tokenizer, or return None.

    Columns of older versions have no list of files; then only the folder must exist.
    """
    if not (folder / TOKENIZER_FOLDER).is_dir():
        return f"{folder / TOKENIZER_FOLDER} is missing"
    sums = folder / TOKENIZER_SUMS
    if not sums.exists():
        return None
    try:
        data = read_bytes(sums, limit=_MAX_SUMS_BYTES)
        there = {
            path.name: path
            for path in sorted((folder / TOKENIZER_FOLDER).iterdir())
            if not path.name.startswith(".")
        }
        for name in sorted(there):
            line = _sum_line(there[name])
            if line.encode() not in data.splitlines(keepends=True):
                return f"{there[name]} is not the saved file, whose sha256 is in {sums}"
    except DataError as error:
        return str(error)
    if len(data.splitlines()) != len(there):
        return f"{folder / TOKENIZER_FOLDER} lacks a file that {sums} lists"
    return None


def _sum_line(path: Path) -> str:
    return f"{sha256_file(path)}  {TOKENIZER_FOLDER}/{path.name}\n"
