"""Stream lines of files, and rows of JSON lines and TSV, with line numbers.

An unreadable row does not end the stream: it is yielded as a :class:`Row` with a reason instead of
a record, and reading continues after it. No reader holds more than one row, and a row of more than
:data:`MAX_ROW_BYTES` is refused, so memory is bounded for any file. An input that unpacks to far
more than any text does, or that has endless blank lines, ends the reading with a one-line error.
"""

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import DamageError, DataError
from shards.files import did_you_mean, open_regular, sha256_file
from shards.heads import GZIP, HEAD_BYTES, one_json_value, packing, wide_encoding

MAX_ROW_BYTES = 16 << 20
MAX_JSON_DEPTH = 500
"""Deepest nesting of lists and objects in a row: both JSON parsers can read a little more."""
MAX_UNPACKED_RATIO = 200
"""Most bytes that one byte of a gzip or zip member may unpack to, beyond the first 64 MiB: texts
reach 3 to 30, a zip bomb 1,000."""
MAX_BLANK_LINES = 1_000_000
"""Most blank lines in a row."""
DEFAULT_MAX_REFUSED = 0.2
UTF8_REMEDY = (
    "expected UTF-8; for Windows or Latin-1: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT (use the"
    " names of other encodings, such as GB18030)"
)
"""Not Latin-1: it maps the quotes and dashes of Windows to controls, which would be removed."""
FORMATS = ("jsonl", "csv", "tsv", "parquet", "mind")
_EXCERPT_CHARS = 160
_BUFFER_BYTES = 1 << 18
_FREE_UNPACKED_BYTES = 64 << 20
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]+|[\]}]+', re.DOTALL)
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# RuntimeError: a member that is encrypted, or compressed by a method that zipfile does not know.
_BROKEN_INPUT = (EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(slots=True)
class Row:
    """One row of an input: a record, or the reason for its absence."""

    line: int
    """Line number from 1 (for a row of several lines, its first; in Parquet, the row number)."""
    record: Any = None
    """The decoded row; for JSON lines always a dict."""
    reason: str | None = None
    raw: Any = ""
    """Text of the row, for the report."""

    def excerpt(self) -> str:
        """Return the beginning of the row, on one line."""
        raw = self.raw
        if isinstance(raw, bytes):
            text = raw[: 4 * _EXCERPT_CHARS].decode("utf-8", "backslashreplace")
        else:
            text = raw if isinstance(raw, str) else str(raw)
        text = " ".join(text[: 4 * _EXCERPT_CHARS].split())
        return text if len(text) <= _EXCERPT_CHARS else text[: _EXCERPT_CHARS - 1] + "…"


class InputFile:
    """A file to read, which may be gzipped, or a member of a zip archive.

    Attributes:
        path: The file, or the archive.
        member: The member's name in the archive, or None.
        name: Name in reports and manifests: file names only, no folders.
        size: Bytes to read in total (compressed, for a gzipped file).
        position: Bytes read so far, out of ``size``.
        num_lines: Lines that :meth:`lines` has yielded.
        offset: End of the last yielded line, in bytes of the unpacked file.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        """Check the beginning of the file.

        Raises:
            DataError: The file is missing, is not a regular file, or is packed by anything but
                gzip.
        """
        check_is_file(path)
        self.path = path
        self.member = member
        self.name = path.name if member is None else f"{path.name}/{Path(member).name}"
        self.position = self.num_lines = self.offset = 0
        self.size = self._packed_bytes = path.stat().st_size
        self._gzipped = False
        if member is None:
            with open_regular(path) as file:
                head = file.read(HEAD_BYTES)
            found = packing(head)
            if found is not None and found[0] not in (GZIP, "Parquet"):
                raise DataError(f"{path} is packed with {found[0]}; {found[1].format(path)}")
            named = path.suffix.lower() == ".gz" and len(head) > 0
            self._gzipped = named or (found is not None and found[0] == GZIP)
        else:
            with open_zip(path) as archive:
                info = archive.getinfo(member)
            self.size, self._packed_bytes = info.file_size, info.compress_size

    def sha256(self) -> str:
        """Return the sha256 of the file (of the whole archive, for a member)."""
        return sha256_file(self.path)

    @property
    def is_plain(self) -> bool:
        """Whether the bytes on disk are unpacked content, so that reading may begin anywhere."""
        return self.member is None and not self._gzipped

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
        """Yield (line number, line without its newline); None for a line that is too long.

        A UTF-8 byte order mark at the start of the file is dropped.

        Args:
            start: For a plain file, yield only lines that begin here or later; they are numbered
                from 1.
            stop: For a plain file, yield only lines that begin before this byte.

        Raises:
            DataError: The file is UTF-16 or UTF-32 instead of UTF-8, is packed twice, unpacks to
                more than :data:`MAX_UNPACKED_RATIO` allows, has lines of old Macs, or too many
                blank lines.
            DamageError: The file cannot be read to its end, for example a truncated gzip file.
        """
        number = blank = 0
        most = self._most_unpacked
        try:
            with self.path.open("rb") as raw, self._unpacked(raw) as unpacked:
                # Reading lines of a zip's member or a gzip directly is slow.
                file = io.BufferedReader(unpacked, _BUFFER_BYTES)  # type: ignore[type-var]
                position = unpacked if self.member is not None else raw
                if not start:
                    self._check_head(file.peek(_BUFFER_BYTES))
                end = _line_start(file, start, stop) if start else 0
                while stop is None or end < stop:
                    line = file.readline(MAX_ROW_BYTES + 2)
                    if not line:
                        break
                    number += 1
                    end += len(line)
                    if end == len(line):
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    text = line.removesuffix(b"\n").removesuffix(b"\r")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_ROW_BYTES)
                        end += len(line)
                        if end > most:
                            break
                    blank = blank + 1 if not text or text.isspace() else 0
                    if end > most:
                        self.check_unpacked(end)
                    if blank > MAX_BLANK_LINES:
                        raise DataError(
                            f"{self._place(number, start)}: more than {MAX_BLANK_LINES:,} blank"
                            " lines in a row; remove them, or give another file"
                        )
                    self.num_lines, self.offset = number, end
                    yield number, text if len(text) <= MAX_ROW_BYTES else None
                    if number % 256 == 0:
                        self.position = position.tell()
        except _BROKEN_INPUT as error:
            raise DamageError(f"{self._place(number, start)}: cannot read on: {error}") from error
        self.num_lines = number
        self.position = self.size

    def _unpacked(self, raw: IO[bytes]) -> IO[bytes]:
        gzipped = self._gzipped
        if self.member is not None:
            raw = zipfile.ZipFile(raw).open(self.member)  # noqa: SIM115
            found = packing(raw.read(HEAD_BYTES))
            gzipped = found is not None and found[0] == GZIP
            raw.seek(0)
        if gzipped:
            return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[return-value]
        return raw

    def _check_head(self, head: bytes) -> None:
        """Refuse an input whose first unpacked bytes are not UTF-8 text."""
        found, encoding = packing(head[:HEAD_BYTES]), wide_encoding(head[:HEAD_BYTES])
        if found is not None:
            inside = "" if self.is_plain else "(after unpacking) "
            raise DataError(
                f"{self.name} is not text but {inside}{found[0]}; {found[1].format(self.path)}"
            )
        if encoding is not None:
            raise DataError(
                f"{self.name} is {encoding}; expected UTF-8; convert it:"
                f" iconv -f {encoding} -t UTF-8 {Path(self.member or self.path).name} > FILE"
            )
        if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
            raise DataError(
                f"{self.name}: its lines end in a carriage return alone, expected a newline;"
                " convert it: tr '\\r' '\\n' < IN > OUT"
            )

    def check_json_lines(self) -> None:
        """Explain a file without any usable line.

        Raises:
            DataError: The file is JSON, but not one object per line.
        """
        with self.path.open("rb") as raw, self._unpacked(raw) as unpacked:
            found = one_json_value(unpacked.read(HEAD_BYTES))
        if found is not None:
            what, rows = found
            raise DataError(
                f"{self.name} is {what}; expected one object per line; convert it:"
                f" jq -c {rows!r} < IN > OUT.jsonl"
            )

    def check_unpacked(self, size: int) -> None:
        """Check the size of the unpacked data so far.

        Raises:
            DataError: The size is larger than that of any text.
        """
        if size > self._most_unpacked:
            raise DataError(
                f"{self.name} unpacks to more than {size:,} bytes from {self._packed_bytes:,}, more"
                f" than {MAX_UNPACKED_RATIO} times as many; if that is right, unpack it first"
            )

    @property
    def _most_unpacked(self) -> int:
        return max(_FREE_UNPACKED_BYTES, MAX_UNPACKED_RATIO * self._packed_bytes)

    def _place(self, number: int, start: int) -> str:
        return f"{self.name}, after line {number}" + (f" from byte {start} on" if start else "")


def check_is_file(path: Path) -> None:
    """Check that an input is a file that can be read more than once.

    Raises:
        DataError: The input is missing, or is a folder, a pipe or a device.
    """
    if path.is_file():
        return
    if path.is_fifo():
        raise DataError(
            f"input {path} is not a file but a pipe; inputs are read more than once: write it to a"
            " file first (gzip needs no unpacking)"
        )
    if path.exists():
        raise DataError(f"input {path} is not a file")
    raise DataError(f"input {path} does not exist{did_you_mean(path, files=True)}")


def _line_start(file: IO[bytes], start: int, stop: int | None) -> int:
    """Seek to the first line at or after ``start``, or to ``stop``; return where."""
    at = file.seek(start - 1)
    while stop is None or at < stop:
        part = file.readline(_BUFFER_BYTES)
        at += len(part)
        if not part or part.endswith(b"\n"):
            break
    return at


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip archive.

    Raises:
        DataError: The file is not a zip archive.
    """
    try:
        return zipfile.ZipFile(path)
    except _BROKEN_INPUT as error:
        raise DataError(f"cannot open the archive {path}: {error}") from error


def guess_format(path: Path) -> str | None:
    """Return the format that a file's name indicates (ignoring ``.gz``), or None."""
    return _SUFFIXES.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def parse_json_lines(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Row]:
    """Yield one JSON object per line; skip blank lines."""
    for number, line in lines:
        if line is None:
            yield Row(number, reason="row too long")
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            yield Row(number, reason="bad UTF-8", raw=line)
        except (ValueError, RecursionError):
            yield Row(number, reason="bad JSON", raw=line)
        else:
            reason = None if isinstance(record, dict) else "not a JSON object"
            # Most rows are flat. The depth at which Python's parser fails depends on its caller.
            if reason is None and _has_nested(record) and is_deep(line):
                reason = "bad JSON"
            yield Row(number, record if reason is None else None, reason, line)


def _has_nested(record: dict[str, Any]) -> bool:
    return any(isinstance(value, list | dict) for value in record.values())


def is_deep(text: bytes) -> bool:
    """Tell whether lists and objects are nested deeper than :data:`MAX_JSON_DEPTH`."""
    if text.count(b"[") + text.count(b"{") <= MAX_JSON_DEPTH:
        return False
    depth = 0
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first in b"[{":
            depth += token.end() - token.start()
            if depth > MAX_JSON_DEPTH:
                return True
        elif first in b"]}":
            depth -= token.end() - token.start()
    return False


def parse_tab_separated(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Row]:
    """Yield the fields of each line, split at tabs, without quoting (as IANA registers TSV)."""
    for number, line in lines:
        if line is None:
            yield Row(number, reason="row too long")
            continue
        if not line:
            continue
        try:
            yield Row(number, line.decode("utf-8").split("\t"), None, line)
        except UnicodeDecodeError:
            yield Row(number, reason="bad UTF-8", raw=line)
