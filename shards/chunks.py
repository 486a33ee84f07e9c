"""Inputs cut into chunks that can be worked on apart from each other.

Where the cuts are follows from the input alone, never from the number of processes, so neither
does anything that is made from a chunk. JSON lines, TSV and MIND's files that are not compressed
are cut by bytes: a chunk has the lines that begin in its span, and is read by whoever works on it;
how many lines lie before it is known only when its predecessors have been counted. Everything else
(gzip, members of zips, CSV with its quotes over several lines, Parquet) is read by one process,
which hands on lines or rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.errors import DataError
from shards.parquet import read_parquet
from shards.sources import FORMATS, InputFile, Row, parse_json_lines, parse_tab_separated
from shards.tables import read_csv, read_header, with_names

CHUNK_BYTES = 8 << 20
_CHUNK_ROWS = 1024  # of CSV and Parquet, at most
_LINE_COST = 128  # bytes of memory that a line takes beside its own

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an input: a span of its bytes, or its lines or rows themselves."""

    number: int
    """Place among the chunks of the input."""
    num_bytes: int
    """How much of the input it is, on disk."""
    form: str
    lines_before: int | None = None
    """What to add to line numbers; None: the lines of all chunks before it."""
    header: tuple[str, ...] | None = None
    span: tuple[int, int] | None = None
    lines: Sequence[tuple[int, bytes | None]] | None = None
    ready: Sequence[Row] | None = None

    def rows(self, file: InputFile) -> Iterator[Row]:
        """Yield the rows; ``file.num_lines`` then says how many lines a span had.

        Raises:
            DamageError: If the input cannot be read.
        """
        rows: Iterator[Row]
        if self.ready is not None:
            rows = iter(self.ready)
        else:
            lines = file.lines(*self.span) if self.span else iter(self.lines or ())
            parse = parse_json_lines if self.form == "jsonl" else parse_tab_separated
            rows = parse(lines)
        return rows if self.header is None else with_names(rows, self.header)


def cut(
    file: InputFile,
    form: str,
    columns: Sequence[str] = (),
    wanted: Sequence[Sequence[str]] | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of a file in one of :data:`~shards.sources.FORMATS`.

    Args:
        file: What to read.
        form: Its format. CSV and TSV begin with a header line.
        columns: Columns that must be there (not checked in JSON lines, where rows differ).
        wanted: Paths of keys to read of Parquet; None reads all columns.

    Raises:
        DataError: If a column of ``columns`` is missing, or Parquet is asked for without pyarrow.
        DamageError: If the file cannot be read to its end.
    """
    if form not in FORMATS:
        raise DataError(
            f"{file.name}: unknown format {form!r}; expected one of {', '.join(FORMATS)}"
        )
    if form == "csv":
        rows = read_csv(file)
        header = tuple(read_header(file, rows, columns))
        yield from _in_rows(file, form, rows, header)
    elif form == "parquet":
        yield from _in_rows(file, form, read_parquet(file, columns, wanted), None)
    else:
        yield from _in_lines(file, form, columns)


def _in_lines(file: InputFile, form: str, columns: Sequence[str]) -> Iterator[Chunk]:
    lines = file.lines()
    header: tuple[str, ...] | None = None
    if form == "tsv":
        header = tuple(read_header(file, parse_tab_separated(lines), columns))
    if not file.is_plain:
        filled = (item for item in lines if item[1] is None or item[1])
        for number, (size, part) in enumerate(_batches(file, filled, _line_bytes)):
            yield Chunk(number, size, form, 0, header, lines=part)
        return
    before, first = (file.num_lines, file.offset) if header else (0, 0)
    for number, start in enumerate(range(first, max(file.size, first + 1), CHUNK_BYTES)):
        stop = min(start + CHUNK_BYTES, file.size)
        lines_before = None if number else before
        yield Chunk(number, stop - start, form, lines_before, header, span=(start, stop))


def _in_rows(
    file: InputFile, form: str, rows: Iterator[Row], header: tuple[str, ...] | None
) -> Iterator[Chunk]:
    for number, (size, part) in enumerate(_batches(file, rows, _row_bytes, _CHUNK_ROWS)):
        yield Chunk(number, size, form, 0, header, ready=part)


def _batches(
    file: InputFile, items: Iterator[T], size_of: Callable[[T], int], most: int | None = None
) -> Iterator[tuple[int, list[T]]]:
    """Yield (bytes on disk, items): of about ``CHUNK_BYTES`` in memory, ``most`` items at most."""
    batch: list[T] = []
    size = shown = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= CHUNK_BYTES or len(batch) == most:
            yield file.position - shown, batch
            shown = file.position
            batch, size = [], 0
    yield file.position - shown, batch


def _line_bytes(item: tuple[int, bytes | None]) -> int:
    return _LINE_COST + len(item[1] or b"")


def _row_bytes(row: Row) -> int:
    record: Any = row.record
    values = record.values() if isinstance(record, dict) else record or ()
    return sum(len(value) for value in values if isinstance(value, str | bytes | list))
