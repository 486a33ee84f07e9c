"""Read rows with named columns: CSV, and the header line of CSV and TSV."""

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from shards.errors import DataError
from shards.sources import MAX_ROW_BYTES, InputFile, Row

MAX_NAMES_SHOWN = 40
FIELD_OPTIONS = "name the fields with --id-field, --title-field, --body-field …"
TSV_REMEDY = (
    "TSV is read without quoting: write it with quoting=csv.QUOTE_NONE, or as CSV with commas"
)
_CONVERT = (
    """convert it: python3 -c "import csv, sys; csv.writer(sys.stdout).writerows(csv.reader("""
    """sys.stdin, delimiter={!r}))" < IN > OUT"""
)
_NAME_CHARS = 80
_MAX_QUOTED_BYTES = 4 << 20
_LINE_COST = 32  # beside its bytes, so that many short lines are bounded too
_KEPT_RAW_BYTES = 1024


def read_csv(file: InputFile) -> Iterator[Row]:
    """Yield the fields of each CSV record (RFC 4180: quoted fields may span lines).

    An opening quote that is never closed would swallow the rest of the file. If a record of several
    lines turns out broken (or too long), only its first line is therefore refused, and reading
    continues with the next line.
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
            size = size + len(line or b"") + _LINE_COST if taken else 0
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
            reason = "row too long" if line is None else "bad quoting"
            yield Row(number, reason=reason, raw=(line or b"")[:_KEPT_RAW_BYTES])
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(feed(), strict=True)
            continue
        number, line = taken[0]
        if bad:
            raw = b"\n".join(text or b"" for _, text in taken)[:_KEPT_RAW_BYTES]
            yield Row(number, reason="bad UTF-8", raw=raw)
        elif fields:
            yield Row(number, fields, None, line)


def read_header(file: InputFile, rows: Iterator[Row], columns: Sequence[str]) -> list[str]:
    """Read the names of the columns from a table's first row.

    Raises:
        DataError: The row is missing, a name occurs twice or is quoted, or one of ``columns`` is
            missing.
    """
    first = next(rows, None)
    if first is None or first.reason is not None:
        found = "it is empty" if first is None else first.reason
        raise DataError(f"{file.name}: no header line with the names of the columns: {found}")
    header = [name.strip() for name in first.record]
    if any(name not in header for name in columns):
        _check_dialect(file, header)
    if len(set(header)) != len(header):
        twice = next(name for name, count in Counter(header).items() if count > 1)
        raise DataError(f"{file.name}: a column name occurs twice in the header: {twice[:80]!r}")
    require_columns(file, header, columns)
    return header


def _check_dialect(file: InputFile, header: Sequence[str]) -> None:
    """Refuse a table whose separator differs from the expected one.

    Raises:
        DataError: The first line is Excel's ``sep=``, or one name with separators in it.
    """
    if header[0].lower().startswith("sep="):
        raise DataError(
            f"{file.name}: its first line is {printable(header[0])!r}, expected the names of the"
            " columns; remove that line: sed 1d IN > OUT"
        )
    found = next((mark for mark in ";|\t," if mark in header[0]), None)
    if len(header) == 1 and found is not None:
        remedy = "give --format csv" if found == "," else _CONVERT.format(found)
        remedy += ", or --format tsv if no field is in quotes" if found == "\t" else ""
        raise DataError(
            f"{file.name}: its columns are separated by {found!r}, expected"
            f" {'tabs' if found == ',' else 'commas'}; {remedy}"
        )


def with_names(rows: Iterable[Row], header: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table with dicts as records."""
    for row in rows:
        if row.reason is None:
            if len(row.record) == len(header):
                row.record = dict(zip(header, row.record, strict=True))
            else:
                row.record, row.reason = None, "wrong number of columns"
        yield row


def require_columns(file: InputFile, header: Sequence[str], columns: Sequence[str]) -> None:
    """Check that a table has the required columns.

    Raises:
        DataError: A column is missing; the message names the existing columns.
    """
    missing = [name for name in columns if name not in header]
    if missing:
        quoted = any(len(name) > 1 and name[0] == name[-1] == '"' for name in header)
        raise DataError(
            f"{file.name}: no column {missing[0]!r}; its columns are {shown_names(header)}; "
            + (TSV_REMEDY if quoted else FIELD_OPTIONS)
        )


def shown_names(names: Sequence[str]) -> str:
    """Format names as a list for a message: the first :data:`MAX_NAMES_SHOWN` of them."""
    listed = ", ".join(map(printable, names[:MAX_NAMES_SHOWN]))
    more = len(names) - MAX_NAMES_SHOWN
    return (listed or "none") + (f" and {more} more" if more > 0 else "")


def printable(name: str) -> str:
    """Return the beginning of a foreign name, on one line and without control characters."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in name[:_NAME_CHARS]
    )
