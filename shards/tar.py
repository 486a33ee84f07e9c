"""Walk through a tar of any origin, and report its damage instead of skipping it.

Python's ``tarfile`` takes a damaged header for the end of the archive, and so loses the rest
silently. This walk ends only at the two zero blocks that end a tar, with only zeros after them;
everything else is an error that names the offset. The walk is also several times faster.
"""

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import DamageError, DataError
from shards.files import open_regular
from shards.index import TAR_BLOCK, padded

_BLOCK_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20  # a longer name or PAX header is not valid
_MAX_END_BYTES = 64 << 20  # of zeros after the end; tapes fill up blocks of some MiB
_MAX_DIGITS = 20
_ZERO_BLOCK = bytes(TAR_BLOCK)
_FILE_TYPES = b"0\0007"  # regular, regular of old tars, contiguous
_PLAIN_TYPES = b"12345"  # links, devices, folders
_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


@dataclass(slots=True)
class TarMember:
    """One member of a tar."""

    name: bytes
    """Name as stored: usually UTF-8."""
    data_at: int
    size: int
    is_file: bool


class TarWalk:
    """The members of one tar in their order; every byte is read once.

    Args:
        path: The tar.
        digest: A hash that is updated with every byte (``hashlib.sha256()``).

    Attributes:
        at: Bytes read so far.

    Raises:
        DamageError: While iterating, at the first bytes that do not belong in a tar.
    """

    def __init__(self, path: Path, digest: Any) -> None:
        """Open the file."""
        self.path = path
        self.at = 0
        self._digest = digest
        self._unread = 0
        try:
            raw = open_regular(path)
        except DataError as error:
            raise DamageError(str(error)) from error
        self._file: IO[bytes] = io.BufferedReader(raw, _BLOCK_BYTES)
        self.size = os.fstat(raw.fileno()).st_size

    def __enter__(self) -> "TarWalk":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the members; unread data of a member is skipped (but hashed)."""
        name: bytes | None = None
        size: int | None = None
        while (header := self._header()) is not None:
            at = self.at - TAR_BLOCK
            kind = header[156:157]
            self._unread = length = self._number(header[124:136], "size", at)
            if kind in (_GNU_LONG_NAME, _GNU_LONG_LINK, _PAX, _PAX_GLOBAL):
                extension = self._extension(length, at)
                if kind == _GNU_LONG_NAME:
                    name = extension.rstrip(b"\0")
                elif kind == _PAX:
                    name, size = self._pax(extension, at, name, size)
                continue
            is_file = kind in _FILE_TYPES
            if not is_file and kind not in _PLAIN_TYPES:
                raise self._damage(at, f"a member of unsupported type {kind!r}")
            stored = name if name is not None else _stored_name(header)
            if size is not None:
                self._unread = length = size
            if not is_file:
                self._unread = length = 0
            if kind == b"\0" and stored.endswith(b"/"):  # how the oldest tars mark a folder
                is_file = False
            yield TarMember(stored, at + TAR_BLOCK, length, is_file)
            self._pass_over()
            name = size = None

    def data(self) -> bytes:
        """Read the data of the last yielded member."""
        length, self._unread = self._unread, 0
        at = self.at
        data = self._read(min(padded(length), max(self.size - at, 0) + 1))
        if len(data) < padded(length):
            part = "data" if len(data) < length else "padding"
            raise self._damage(at, f"the tar ends in the {part} of a member of {length} bytes")
        return data[:length]

    def _header(self) -> bytes | None:
        at = self.at
        header = self._read(TAR_BLOCK)
        if header == _ZERO_BLOCK:
            self._end(at)
            return None
        if len(header) < TAR_BLOCK:
            where = "in a header" if header else "without the two zero blocks that end a tar"
            raise self._damage(at, f"the tar ends here {where}: it was cut, or never finished")
        checksum = self._number(header[148:156], "checksum", at)
        summed = header[:148] + b" " * 8 + header[156:]
        # The low half of Adler-32 is 1 + the sum of all bytes, modulo 65521: thirty times faster.
        fits = zlib.adler32(summed) & 0xFFFF == (checksum + 1) % 65521
        # Some old writers summed signed bytes.
        if not fits and checksum != sum(summed) - 256 * sum(byte > 127 for byte in summed):
            raise self._damage(at, "the checksum of the header does not fit: it is damaged")
        return header

    def _end(self, at: int) -> None:
        second = self._read(TAR_BLOCK)
        if len(second) < TAR_BLOCK:
            raise self._damage(at, "the second zero block that ends a tar is missing")
        while second:
            if self.at - at > _MAX_END_BYTES:
                raise self._damage(at, f"more than {_MAX_END_BYTES:,} bytes of zeros at the end")
            if second.strip(b"\0"):
                raise self._damage(
                    at, "zeros instead of a header, and other bytes after them: it is damaged"
                )
            second = self._read(_BLOCK_BYTES)

    def _extension(self, length: int, at: int) -> bytes:
        if length > _MAX_EXTENSION_BYTES:
            raise self._damage(at, f"a name or extended header of {length} bytes")
        return self.data()

    def _pax(
        self, data: bytes, at: int, name: bytes | None, size: int | None
    ) -> tuple[bytes | None, int | None]:
        """Return name and size as an extended header changes them."""
        place, end = 0, len(data.rstrip(b"\0"))
        while place < end:
            digits, _, _ = data[place : place + _MAX_DIGITS].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            record = data[place + len(digits) + 1 : place + length - 1]
            key, equals, value = record.partition(b"=")
            if not len(digits) < length <= len(data) - place or not equals:
                raise self._damage(at, "an unreadable extended header")
            if key.startswith(b"GNU.sparse"):
                raise self._damage(at, "an unsupported sparse member")
            if key == b"path":
                name = value
            elif key == b"size":
                if not value.isdigit() or len(value) > _MAX_DIGITS:
                    raise self._damage(at, "an extended header whose size is not a number")
                size = int(value)
            place += length
        return name, size

    def _pass_over(self) -> None:
        at = self.at
        left, self._unread = padded(self._unread), 0
        while left:
            data = self._read(min(left, _BLOCK_BYTES))
            if not data:
                raise self._damage(at, "the tar ends in the data of a member")
            left -= len(data)

    def _number(self, field: bytes, what: str, at: int) -> int:
        if field[0] == 0x80:  # base 256, of sizes from 8 GiB
            return int.from_bytes(field[1:], "big")
        digits = field.strip(b" \0")
        try:
            number = int(digits, 8) if digits else 0
        except ValueError:
            number = -1
        if number < 0:
            raise self._damage(at, f"the {what} in the header is not a number: it is damaged")
        return number

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise self._damage(self.at, f"cannot be read: {error.strerror or error}") from error
        self._digest.update(data)
        self.at += len(data)
        return data

    def _damage(self, at: int, what: str) -> DamageError:
        return DamageError(f"{self.path}, offset {at}: {what}")


def _stored_name(header: bytes) -> bytes:
    name = header[:100].rstrip(b"\0") if header[99] else header[: header.index(0)]
    if header[257:263] == b"ustar\0" and header[345]:
        prefix = header[345:500].partition(b"\0")[0]
        return prefix + b"/" + name
    return name
