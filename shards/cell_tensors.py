"""Name the tensors of a cell and locate them in its data file."""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import numpy as np

from shards.errors import DamageError
from shards.files import parse_json

VALUES = ".values"
OFFSETS = ".offsets"
MAX_HEADER_BYTES = 1 << 20
"""Largest header of a data file that is read; this project's have less than a thousand bytes."""
_HEADER_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1",
}  # fmt: skip
_Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Place of a tensor in a safetensors file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """Entry of a tensor in the header of a safetensors file."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], msgspec.Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]


@dataclass(frozen=True, slots=True)
class CellHeader:
    """The header of a cell's data file."""

    content: str | None
    """The content hash that :func:`shards.cells.write_cell` stored."""
    places: dict[str, TensorPlace]
    start: int
    """Number of bytes before the data."""

    def check_shapes(self, rows: int, path: object) -> None:
        """Check that every tensor has the shard's rows; ragged tensors have ``rows + 1`` offsets.

        Raises:
            DamageError: A tensor has another number of rows.
        """
        for name, place in self.places.items():
            if name.endswith(OFFSETS):
                fits = place.shape == (rows + 1,) and place.dtype == np.int64
            elif name.endswith(VALUES):
                fits = bool(place.shape) and name.removesuffix(VALUES) + OFFSETS in self.places
            else:
                fits = place.shape[:1] == (rows,)
            if not fits:
                raise DamageError(
                    f"{path}: tensor {name} is {place.dtype}{list(place.shape)}, which does not "
                    f"fit the {rows} rows of the shard"
                )


def header_bytes(data: bytes, path: object) -> int:
    """Compute the header's length from the first bytes of a safetensors file.

    Raises:
        DamageError: The file is too short, or its header would be too long.
    """
    if len(data) < _HEADER_LENGTH.size:
        raise DamageError(f"{path} cannot be read as safetensors: it is too short for a header")
    (length,) = _HEADER_LENGTH.unpack_from(data)
    if length > MAX_HEADER_BYTES:
        raise DamageError(
            f"{path} cannot be read as safetensors: its header would have {length:,} bytes, "
            f"expected at most {MAX_HEADER_BYTES:,}"
        )
    return _HEADER_LENGTH.size + int(length)


def parse_header(data: bytes, path: object) -> CellHeader:
    """Parse the header from the first bytes of a safetensors file.

    Raises:
        DamageError: The header is incomplete, is not JSON, or has an invalid entry.
    """
    start = header_bytes(data, path)
    entries = parse_json(data[_HEADER_LENGTH.size : start], dict[str, msgspec.Raw], where=path)
    metadata = entries.pop(_METADATA, None)
    said = parse_json(metadata, dict[str, str], where=path) if metadata is not None else {}
    places = {name: _place(name, entry, start, path) for name, entry in entries.items()}
    return CellHeader(said.get("content"), places, start)


def _place(name: str, raw: msgspec.Raw, start: int, path: object) -> TensorPlace:
    entry = parse_json(raw, _Entry, where=f"{path}, tensor {name},")
    begin, end = entry.data_offsets
    if entry.dtype not in _DTYPES:
        raise DamageError(f"{path}: tensor {name} has the unsupported type {entry.dtype!r}")
    dtype = np.dtype(_DTYPES[entry.dtype])
    if math.prod(entry.shape) * dtype.itemsize != end - begin:
        raise DamageError(f"{path}: the place of tensor {name} does not fit its shape")
    return TensorPlace(dtype, entry.shape, start + begin, start + end)


def tensor_bytes(array: np.ndarray) -> memoryview:
    """View the bytes of a contiguous array without a copy."""
    return array.reshape(-1).view(np.uint8).data


def check_offsets(name: str, offsets: np.ndarray, num_values: int, path: object) -> None:
    """Check that offsets rise from 0 to the number of values.

    Raises:
        DamageError: The offsets do not; a gather would read other rows, or beyond the end.
    """
    rises = offsets[0] == 0 and offsets[-1] == num_values and bool((np.diff(offsets) >= 0).all())
    if not rises:
        raise DamageError(f"{path}: {name} do not rise from 0 to the {num_values} values")


def unlike(
    places: Mapping[str, TensorPlace], expected: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
) -> str | None:
    """Describe a tensor that differs from those of other cells, or return None.

    A gather over both cells would cast values, or read in wrong places.

    Args:
        places: The cell's tensors.
        expected: Name to (dtype, shape of one row or value); missing names may have any.
    """
    for name, place in places.items():
        dtype, shape = expected.get(name, (place.dtype, place.shape[1:]))
        if (place.dtype, place.shape[1:]) != (dtype, shape):
            return (
                f"the values of {name} are {place.dtype}{list(place.shape[1:])}, those of other "
                f"cells {dtype}{list(shape)}"
            )
    return None


def check_bound(name: str, array: np.ndarray, bound: int, path: object) -> None:
    """Check that whole numbers are at least 0 and below ``bound``.

    Raises:
        DamageError: A number is outside the range.
    """
    if not array.size or (array.dtype.kind in "iu" and 0 <= array.min() <= array.max() < bound):
        return
    raise DamageError(
        f"{path}: {name} holds {array.dtype} from {array.min()} to {array.max()}, expected whole "
        f"numbers from 0 to {bound - 1}: it belongs to another set, or was edited; make it again"
    )


class HasTensors(Protocol):
    """A local or remote cell."""

    places: dict[str, TensorPlace]

    def array(self, name: str) -> np.ndarray:
        """Return one tensor, read-only."""
        ...


class CellTensors(Mapping[str, np.ndarray]):
    """The tensors of a cell by name; a tensor is mapped at its first use."""

    __slots__ = ("_cell",)

    def __init__(self, cell: HasTensors) -> None:
        """Keep the cell; map nothing yet."""
        self._cell = cell

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one tensor.

        Raises:
            DamageError: The cell has no tensor of this name, or the tensor is damaged.
        """
        if name not in self._cell.places:
            raise DamageError(
                f"a cell has no tensor {name!r}, only {sorted(self._cell.places)}: it was made by "
                "another program, or was edited; fill the column again"
            )
        return self._cell.array(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether the cell has a tensor of this name; map nothing."""
        return name in self._cell.places

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._cell.places)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._cell.places)
