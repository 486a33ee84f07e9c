"""Streaming rows out of JSON lines, CSV, TSV and Parquet files, each with its line number.

A row that cannot be read does not end the stream: it comes out as a :class:`Row` with a reason
instead of a record, and the reader goes on behind it. No reader holds more than one row, and a row
of more than :data:`MAX_ROW_BYTES` is refused, so memory is bounded whatever the file.
"""

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import DamageError, DataError
from shards.files import sha256_file

MAX_ROW_BYTES = 16 << 20
DEFAULT_MAX_REFUSED = 0.2
_MAX_QUOTED_BYTES = 4 << 20
FORMATS = ("jsonl", "csv", "tsv", "parquet", "mind")
_EXCERPT_CHARS = 160
_BUFFER_BYTES = 1 << 18
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# RuntimeError: a member that is encrypted or compressed in a way that zipfile does not know.
_BROKEN_INPUT = (EOFError, OSError, RuntimeError, zlib.error, zipfile.BadZipFile)


@dataclass(slots=True)
class Row:
    """One row of an input: a record, or the reason why there is none."""

    line: int
    """Line number from 1 (of a row of several lines: its first; in Parquet: the row number)."""
    record: Any = None
    """The decoded row; for JSON lines always a dict."""
    reason: str | None = None
    raw: Any = ""
    """What the row looked like, for the report."""

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
    """A file to read, perhaps gzipped, or a member of a zip archive.

    Attributes:
        path: The file, or the archive.
        member: The member's name in the archive, or None.
        name: What reports and manifests call it: file names only, no folders.
        size: Bytes that reading it to the end takes (compressed, where it is gzipped).
        position: Bytes of them read so far.
        num_lines: Lines that :meth:`lines` has yielded.
        offset: Where the last of them ended, in bytes of the unpacked file.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        """Check that the file is there.

        Raises:
            DataError: If it is not, or it is no file.
        """
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise DataError(f"input {path} {what}")
        self.path = path
        self.member = member
        self.name = path.name if member is None else f"{path.name}/{Path(member).name}"
        self.position = self.num_lines = self.offset = 0
        self.size = path.stat().st_size
        if member is not None:
            with open_zip(path) as archive:
                self.size = archive.getinfo(member).file_size

    def sha256(self) -> str:
        """Return the sha256 of the file (of the whole archive, for a member)."""
        return sha256_file(self.path)

    @property
    def is_plain(self) -> bool:
        """Whether the bytes on disk are the file's own, so that reading may begin anywhere."""
        return self.member is None and self.path.suffix != ".gz"

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes | None]]:
        """Yield (line number, line without its newline); None for a line that is too long.

        A UTF-8 byte order mark at the start of the file is dropped.

        Args:
            start: Of a plain file: yield only lines that begin here or later; they are numbered
                from 1.
            stop: ... and before here.

        Raises:
            DamageError: If the file cannot be read to its end, for example a gzip cut short.
        """
        number = 0
        try:
            with self.path.open("rb") as raw, self._unpacked(raw) as unpacked:
                # Reading lines of a zip's member or a gzip directly is slow.
                file = io.BufferedReader(unpacked, _BUFFER_BYTES)  # type: ignore[type-var]
                position = unpacked if self.member is not None else raw
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
                    self.num_lines, self.offset = number, end
                    yield number, text if len(text) <= MAX_ROW_BYTES else None
                    if number % 256 == 0:
                        self.position = position.tell()
        except _BROKEN_INPUT as error:
            raise DamageError(
                f"{self.name}, after line {number}"
                + (f" behind byte {start}" if start else "")
                + f": cannot read on: {error}"
            ) from error
        self.num_lines = number
        self.position = self.size

    def _unpacked(self, raw: IO[bytes]) -> IO[bytes]:
        if self.member is not None:
            return zipfile.ZipFile(raw).open(self.member)
        if self.path.suffix == ".gz":
            return gzip.GzipFile(fileobj=raw, mode="rb")  # type: ignore[return-value]
        return raw


def _line_start(file: IO[bytes], start: int, stop: int | None) -> int:
    """Seek to the first line that begins at ``start`` or later, or to ``stop``; return where."""
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
        DataError: If it is none.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot open the archive {path}: {error}") from error


def guess_format(path: Path) -> str | None:
    """Return the format that a file's name stands for (``.gz`` aside), or None."""
    return _SUFFIXES.get(Path(path.name.removesuffix(".gz")).suffix.lower())


def parse_json_lines(lines: Iterable[tuple[int, bytes | None]]) -> Iterator[Row]:
    """Yield one JSON object a line; blank lines are passed over."""
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
            yield Row(number, record if reason is None else None, reason, line)


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


def read_csv(file: InputFile) -> Iterator[Row]:
    """Yield the fields of each CSV record (RFC 4180: a quoted field may run over several lines).

    An opening quote that is never closed would swallow the rest of the file. So when a record of
    several lines turns out broken (or too long for one), only its first line is refused, and
    reading goes on with the next.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = file.lines()
    again: deque[tuple[int, bytes | None]] = deque()
    taken: list[tuple[int, bytes | None]] = []
    bad: set[int] = set()

    def feed() -> Iterator[str]:
        size = 0
        while True:
            number, line = item = again.popleft() if again else next(lines, (0, b""))
            if number == 0:
                return
            size = size + len(line or b"") if taken else 0
            taken.append(item)
            if line is None or size > _MAX_QUOTED_BYTES:
                raise csv.Error("too long")
            try:
                yield line.decode("utf-8") + "\n"
            except UnicodeDecodeError:
                bad.add(number)
                yield line.decode("utf-8", "replace") + "\n"

    reader = csv.reader(feed(), strict=True)
    while True:
        taken.clear()
        bad.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            number, line = taken[0]
            yield Row(number, reason="row too long" if line is None else "bad quoting", raw=line)
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(feed(), strict=True)
            continue
        number, line = taken[0]
        if bad:
            yield Row(number, reason="bad UTF-8", raw=b"\n".join(text or b"" for _, text in taken))
        elif fields:
            yield Row(number, fields, None, line)


def read_header(file: InputFile, rows: Iterator[Row], columns: Sequence[str]) -> list[str]:
    """Take the names of the columns off the rows of a table.

    Raises:
        DataError: If there are none, one occurs twice, or one of ``columns`` is missing.
    """
    first = next(rows, None)
    if first is None or first.reason is not None:
        found = "it is empty" if first is None else first.reason
        raise DataError(f"{file.name}: no header line with the names of the columns: {found}")
    header = [name.strip() for name in first.record]
    if len(set(header)) != len(header):
        raise DataError(f"{file.name}: a column name occurs twice in the header: {header}")
    _require_columns(file, header, columns)
    return header


def with_names(rows: Iterable[Row], header: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table with dicts as records."""
    for row in rows:
        if row.reason is None:
            if len(row.record) == len(header):
                row.record = dict(zip(header, row.record, strict=True))
            else:
                row.record, row.reason = None, "wrong number of columns"
        yield row


def _require_columns(file: InputFile, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"{file.name}: no column {missing[0]!r}; its columns are {', '.join(header)};"
            " say which to use with --id-field, --title-field, --body-field …"
        )


def read_parquet(file: InputFile, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a Parquet file, in batches of 1024.

    Raises:
        DataError: If pyarrow is not installed or a column is missing.
        DamageError: If the file cannot be read.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"{file.name}: reading Parquet needs pyarrow: pip install 'tiny-newsrec[parquet]'"
        ) from error
    number = 0
    try:
        with ParquetFile(file.path) as table:
            _require_columns(file, table.schema_arrow.names, columns)
            total = max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(number, record, None, record)
                file.position = file.size * number // total
    except (ArrowException, OSError) as error:
        raise DamageError(f"{file.name}, after row {number}: cannot read on: {error}") from error
    file.position = file.size
