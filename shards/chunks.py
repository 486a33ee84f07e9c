"""Cut inputs into chunks that can be processed independently.

The input alone determines the cuts, never the number of processes; the same holds for all results
made from a chunk. Uncompressed JSON lines, TSV and MIND files are cut by bytes: a chunk has the
lines that begin in its span, and the process that works on the chunk reads them. The line numbers
of a chunk are known only when its predecessors have been counted. All other inputs (gzip, members
of zips, CSV with quoted line ends, Parquet) are read by one process, which passes on lines or rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shards.errors import DataError
from shards.parquet import read_parquet
from shards.sources import FORMATS, InputFile, Row, parse_json_lines, parse_tab_separated
from shards.tables import read_csv, read_header, with_names

CHUNK_BYTES = 8 << 20
_CHUNK_ROWS = 1024  # largest number of CSV or Parquet rows
_LINE_COST = 128  # bytes of memory that a line takes in addition to its own bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an input: a span of its bytes, or its lines or rows."""

    number: int
    """Position among the chunks of the input."""
    num_bytes: int
    """Size on disk."""
    form: str
    lines_before: int | None = None
    """Number to add to line numbers; None stands for the lines of all earlier chunks."""
    header: tuple[str, ...] | None = None
    span: tuple[int, int] | None = None
    lines: Sequence[tuple[int, bytes | None]] | None = None
    ready: Sequence[Row] | None = None

    def rows(self, file: InputFile) -> Iterator[Row]:
        """Yield the rows; ``file.num_lines`` then is the number of lines in the span.

        Raises:
            DamageError: The input cannot be read.
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
        file: The file to read.
        form: The file's format. CSV and TSV begin with a header line.
        columns: Required columns (not checked in JSON lines, where rows differ).
        wanted: Paths of the keys to read from Parquet; None reads all columns.

    Raises:
        DataError: A column of ``columns`` is missing, or Parquet is requested without pyarrow.
        DamageError: The file cannot be read to its end.
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
    """Yield (bytes on disk, items): about ``CHUNK_BYTES`` in memory, at most ``most`` items."""
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
