"""Store one chunk's results in a file until the shards are written.

A spool appears whole or not at all, so an existing spool need not be made again. It holds, in this
order: the payloads of the usable rows (an article's JSON, or a body from a second file); a record
of :data:`ROW_DTYPE` for each of them; a near-duplicate signature for each, if requested; a JSON
line for each refused row; a JSON object with the sizes of these parts and with counts; and the
length of that object in eight bytes.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypedDict

import numpy as np

from shards.errors import DamageError
from shards.files import atomic_file, parse_json

ROW_DTYPE = np.dtype(
    [
        ("id", "<u8", 2),  # hash of the id
        ("text", "<u8", 2),  # hash of title and body
        ("article", "<u8"),  # hash of all fields
        ("line", "<u4"),  # line number within the chunk
        ("length", "<u4"),  # bytes of the payload
        ("fields", "<u2"),  # bit i: the sample has the i-th of FIELD_NAMES
        ("origin", "u1"),  # origin of the body
        ("changed", "u1"),  # bit i: the i-th rule of normalisation changed a text
    ]
)
_RECORD = struct.Struct("<16s16s8sIIHBB")
_LENGTH = struct.Struct("<Q")
_PARTS = ("payloads", "rows", "signatures", "refused")


class _Known(TypedDict):
    rows: int
    """Rows of the chunk, usable or not."""
    lines: int
    """Lines of the chunk, if it is a span of a file."""
    refused_first: int
    """Number of refused rows before the first usable one."""
    sizes: tuple[int, int, int, int]
    """Bytes of the parts of the spool."""


class Facts(_Known, total=False):
    """The facts about a chunk at the end of its spool."""

    seen: list[str]
    """Fields that occurred."""
    keys: list[str]
    """Fields of the first row."""
    quoting: tuple[int, int, int]
    """See :class:`shards.articles.Quoting`."""
    notes: list[tuple[int, str, str]]
    """(line, what, excerpt) for oddities of kept rows."""


def hash_text(text: str, size: int = 16) -> bytes:
    """Hash a text. With 16 bytes, equal hashes mean equal texts for all practical purposes.

    Raises:
        UnicodeEncodeError: The text holds half of a surrogate pair.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=size).digest()


class SpoolWriter:
    """Writes one spool; use it as a context manager and call :meth:`finish` at the end."""

    def __init__(self, path: Path) -> None:
        """Prepare; the file appears under ``path`` when the block ends."""
        self._context = atomic_file(path)
        self._rows = bytearray()
        self._refused = bytearray()
        self._payload_bytes = 0

    def __enter__(self) -> "SpoolWriter":
        """Open the file."""
        self._file: IO[bytes] = self._context.__enter__()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the file in place, or remove it after an error."""
        self._context.__exit__(error_type, error, traceback)

    def add(
        self,
        payload: bytes,
        line: int,
        *,
        id: bytes,
        text: bytes = bytes(16),
        article: bytes = bytes(8),
        fields: int = 0,
        origin: int = 0,
        changed: int = 0,
    ) -> None:
        """Add a usable row; the parts of its record are those of :data:`ROW_DTYPE`."""
        self._file.write(payload)
        self._payload_bytes += len(payload)
        self._rows += _RECORD.pack(id, text, article, line, len(payload), fields, origin, changed)

    def refuse(self, line: int, reason: str, excerpt: str) -> None:
        """Add an unusable row."""
        self._refused += json.dumps([line, reason, excerpt]).encode("ascii") + b"\n"

    def finish(self, facts: Mapping[str, Any], signatures: bytes = b"") -> None:
        """Write the remaining parts.

        Args:
            facts: Further facts about the chunk.
            signatures: A near-duplicate signature for each row.
        """
        for part in (self._rows, signatures, self._refused):
            self._file.write(part)
        sizes = (self._payload_bytes, len(self._rows), len(signatures), len(self._refused))
        data = json.dumps({**facts, "sizes": sizes}).encode("ascii")
        self._file.write(data + _LENGTH.pack(len(data)))


class Spool:
    """A finished spool.

    Attributes:
        path: The file.
        facts: The argument of :meth:`SpoolWriter.finish`.
        num_rows: Number of usable rows.
    """

    def __init__(self, path: Path) -> None:
        """Read the end of the file.

        Raises:
            DamageError: The file is not a spool.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(-_LENGTH.size, os.SEEK_END)
                (length,) = _LENGTH.unpack(file.read())
                if length > size:
                    raise ValueError(f"its end would have {length} bytes")
                file.seek(size - length)
                self.facts = parse_json(file.read(length), Facts, where=path)
        except (OSError, ValueError, struct.error) as error:
            raise DamageError(f"cannot read {path}, which this build has written") from error
        sizes = self.facts["sizes"]
        if min(sizes) < 0 or sum(sizes) != size - length or sizes[1] % ROW_DTYPE.itemsize:
            raise DamageError(f"{path}, which this build has written, is damaged")
        self._starts = dict(zip(_PARTS, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._sizes = dict(zip(_PARTS, sizes, strict=True))
        self.num_rows = self._sizes["rows"] // ROW_DTYPE.itemsize

    def rows(self) -> np.ndarray:
        """Return the records ``[n]`` of :data:`ROW_DTYPE`."""
        return np.frombuffer(self._part("rows"), ROW_DTYPE)

    def signatures(self, width: int) -> np.ndarray:
        """Return the signatures, uint8 ``[n, width]``."""
        return np.frombuffer(self._part("signatures"), np.uint8).reshape(-1, width)

    def refused(self) -> Iterator[tuple[int, str, str]]:
        """Yield (line, reason, excerpt) of each refused row."""
        left = self._sizes["refused"]
        with self.path.open("rb") as file:
            file.seek(self._starts["refused"])
            while left > 0:
                line = file.readline()
                left -= len(line)
                if not line:
                    raise DamageError(f"{self.path}, which this build has written, is damaged")
                yield parse_json(line, tuple[int, str, str], where=self.path)

    def _part(self, name: str) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._starts[name])
            return file.read(self._sizes[name])


def read_at(path: Path, offset: int, length: int) -> bytes:
    """Return ``length`` bytes of a spool.

    Raises:
        DamageError: The spool has fewer bytes.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) < length:
        raise DamageError(f"{path}, which this build has written, is damaged")
    return data


def read_column(spools: Sequence[Spool], name: str) -> np.ndarray:
    """Return one field of :data:`ROW_DTYPE` for the rows of all spools."""
    num_rows = sum(spool.num_rows for spool in spools)
    field = ROW_DTYPE[name]
    # The halves of a hash go to separate arrays, as sorting needs them.
    column = np.empty((num_rows, *field.shape), field.base, order="F")
    done = 0
    for spool in spools:
        # One spool at a time, so that the other fields do not stay in memory.
        column[done : done + spool.num_rows] = spool.rows()[name]
        done += spool.num_rows
    return column
