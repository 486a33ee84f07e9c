"""Read rows of Parquet files; refuse a row with a value that Python cannot hold.

Only the requested columns are read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from shards.errors import DamageError, DataError
from shards.fields import FLOAT_TYPES, RoundedFloat
from shards.sources import MAX_ROW_BYTES, InputFile, Row
from shards.tables import require_columns

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS = 32  # few, because a value may take some MiB even if the file is small


class _Unheld:
    """Placeholder for a value that Python cannot hold."""

    def __init__(self, column: str, kind: object, error: Exception) -> None:
        """Keep the column's name and its type's error."""
        self.column = column
        self.reason = "bad UTF-8" if isinstance(error, UnicodeError) else f"unreadable {column}"
        self.text = f"column {column} of type {kind}: {_said(error)}"


def read_parquet(
    file: InputFile,
    columns: Sequence[str] = (),
    wanted: Sequence[Sequence[str]] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Args:
        file: The file to read.
        columns: Required columns.
        wanted: Paths of keys to read, each with everything below it; None reads all columns.

    Raises:
        DataError: pyarrow is not installed, a column is missing, or the file is gzipped.
        DamageError: The file cannot be read.
    """
    number = 0
    try:
        with _opened(file) as table:
            _check_columns(file, table, columns)
            read = None if wanted is None else _leaves_of(table, wanted)
            total = max(1, table.metadata.num_rows)
            unpacked = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=read):
                unpacked += batch.nbytes
                file.check_unpacked(unpacked)
                for row in _rows(batch, number):
                    number = row.line
                    yield row
                file.position = file.size * number // total
    except _errors() as error:
        raise DamageError(
            f"{file.name}, after row {number}: cannot read on: {_said(error)}"
        ) from error
    file.position = file.size


def leaf_names(file: InputFile) -> list[str]:
    """Return the path of every column of a Parquet file, in the form of ``--title-field``.

    Raises:
        DataError: pyarrow is not installed, or the file is gzipped.
        DamageError: The file cannot be read.
    """
    try:
        with _opened(file) as table:
            return _shown_leaves(table)
    except _errors() as error:
        raise DamageError(f"{file.name}: cannot be read: {_said(error)}") from error


def _opened(file: InputFile) -> "ParquetFile":
    try:
        import pyarrow  # noqa: F401
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            f"{file.name}: reading Parquet needs pyarrow: pip install 'tiny-newsrec[parquet]'"
        ) from error
    if not file.is_plain:
        raise DataError(
            f"{file.path} is packed with gzip, but Parquet is compressed itself; unpack it"
            f" first: gunzip < {file.path} > FILE"
        )
    return ParquetFile(file.path)


def _said(error: Exception) -> str:
    """Return pyarrow's message on one line."""
    return " ".join(str(error).split())[:300]


def _errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of pyarrow for damaged files (ValueError: names not in UTF-8)."""
    try:
        from pyarrow import ArrowException
    except ImportError:
        return (OSError, ValueError)
    return (ArrowException, OSError, ValueError)


def _check_columns(file: InputFile, table: "ParquetFile", columns: Sequence[str]) -> None:
    names = table.schema_arrow.names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{file.name}: a column name occurs twice: {twice[0][:80]!r}")
    if any(name not in names for name in columns):
        require_columns(file, _shown_leaves(table), columns)


def _shown_leaves(table: "ParquetFile") -> list[str]:
    return [".".join(path) for field in table.schema_arrow for path in _paths(field)]


def _paths(field: "pyarrow.Field") -> Iterator[tuple[str, ...]]:
    """Yield the paths of keys to a column's leaves, in the file's order."""
    for path in _below(field.type):
        yield (field.name, *path)


def _below(kind: "pyarrow.DataType") -> Iterator[tuple[str, ...]]:
    import pyarrow.types as types

    if types.is_struct(kind):
        for field in kind:
            yield from _paths(field)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        yield from _below(kind.value_type)
    elif types.is_map(kind):
        yield from (("key", *path) for path in _below(kind.key_type))
        yield from (("value", *path) for path in _below(kind.item_type))
    else:
        yield ()


def _leaves_of(table: "ParquetFile", wanted: Sequence[Sequence[str]]) -> list[str]:
    """Return the leaves, under their names in the file, at or below a wanted path."""
    named = [table.schema.column(place).path for place in range(len(table.schema))]
    paths = [path for field in table.schema_arrow for path in _paths(field)]
    if len(paths) != len(named):  # a type is stored in another form: then read whole columns
        first = {path[0] for path in wanted}
        return [name for name in table.schema_arrow.names if name in first]
    return [
        name
        for name, path in zip(named, paths, strict=True)
        if any(path[: len(keys)] == tuple(keys) for keys in wanted)
    ]


def _rows(batch: "pyarrow.RecordBatch", before: int) -> Iterator[Row]:
    names = batch.schema.names
    large = batch.nbytes > MAX_ROW_BYTES
    columns = [_values(name, batch.column(place)) for place, name in enumerate(names)]
    for place in range(batch.num_rows):
        record = dict(zip(names, (column[place] for column in columns), strict=True))
        unheld = next((value for value in record.values() if isinstance(value, _Unheld)), None)
        if unheld is not None:
            yield Row(before + place + 1, reason=unheld.reason, raw=unheld.text)
        elif large and batch.slice(place, 1).nbytes > MAX_ROW_BYTES:
            yield Row(before + place + 1, reason="row too long")
        else:
            yield Row(before + place + 1, record, None, record)


def _values(name: str, column: "pyarrow.Array") -> list[Any]:
    """Return the values of a column, with :class:`_Unheld` for values that Python cannot hold."""
    # Times: an unknown zone is a KeyError. Do not use pandas, which may be installed or not.
    unheld: tuple[type[Exception], ...] = (*_errors(), OverflowError, KeyError)
    kind, exact = str(column.type), _in_microseconds(column.type)
    try:
        values: list[Any] = column.cast(exact).to_pylist()
    except unheld:
        values = []
        for place in range(len(column)):
            try:
                values += column.slice(place, 1).cast(exact).to_pylist()
            except unheld as error:
                values.append(_Unheld(name, kind, error))
    bits = FLOAT_TYPES.get(kind)
    if bits is not None:
        return [_rounded(value, kind, bits) for value in values]
    return values


def _rounded(value: Any, kind: str, bits: int) -> Any:
    if isinstance(value, float) and abs(value) >= 2**bits:
        return RoundedFloat(value, kind, bits)
    return value


def _in_microseconds(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """Replace a type's nanoseconds, which Python's times lack, by microseconds."""
    import pyarrow
    import pyarrow.types as types

    if types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return pyarrow.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return pyarrow.time64("us")
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    return kind
