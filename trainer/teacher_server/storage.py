"""Storage of teachers' vectors and scores: float16, float32, or int8 with a scale per row.

In int8, a vector is ``scale * q`` with integers q from -127 to 127, and ``scale`` is 1/127 of its
largest absolute value: ``E + 4`` bytes per vector instead of ``2 E``. Scores are then stored in
float16: a teacher's weight on a sample follows from them, and they take only two bytes per
candidate. This module needs only NumPy. Shapes: N vectors or impressions, E width, D vectors of a
ragged tensor.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shards.cell_tensors import OFFSETS, VALUES

if TYPE_CHECKING:
    from shards.columns import ColumnReader

DTYPES = ("float16", "float32", "int8")
"""Storage types of a teacher's outputs."""
SCALE = ".scale"
"""Suffix of the tensor that holds the scales of an int8 tensor."""
_MOST = 127


class Ragged(NamedTuple):
    """Concatenated values of rows; row ``i`` has ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    """[D, ...]."""
    offsets: np.ndarray
    """int64[N + 1], from 0."""


Values = np.ndarray | Ragged
"""Values of a tensor for N rows: vectors [N, E] or scores, one per row or ragged."""


def store_values(tensors: Mapping[str, Values], dtype: str) -> dict[str, np.ndarray]:
    """Convert a cell's values to stored tensors.

    Vectors are stored by :func:`store`, scores by :func:`store_plain`, and integers unchanged.
    """
    stored: dict[str, np.ndarray] = {}
    for name, given in tensors.items():
        values = given.values if isinstance(given, Ragged) else given
        if values.dtype.kind != "f":
            made = {name: values}
        elif values.ndim == 1:
            made = {name: store_plain(values, dtype)}
        else:
            made = store(name, values, dtype)
        if isinstance(given, Ragged):
            made = ragged(made, given.offsets)
        stored |= made
    return stored


def gather_values(column: "ColumnReader", rows: np.ndarray) -> dict[str, Values]:
    """Return all tensors of a column's rows, by the names given to :func:`store_values`."""
    found: dict[str, Values] = {}
    for tensor in column.tensors:
        name = tensor.removesuffix(VALUES)
        if name.endswith(SCALE) or tensor.endswith(OFFSETS):
            continue
        if name == tensor:
            found[name] = gather_vectors(column, name, rows)
            continue
        _, offsets = column.gather_ragged(name, rows)
        found[name] = Ragged(gather_ragged_vectors(column, name, rows), offsets)
    return found


def store(name: str, vectors_NE: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Convert vectors, one per row of the shard, to a cell's tensors.

    A value that is not finite gives a tensor that is not finite, in every type; the column's writer
    refuses it by row.

    Args:
        name: Name of the tensor; in int8 the scales are ``<name>.scale``, float32[N].
        vectors_NE: float32[N, E].
        dtype: One of ``DTYPES``.
    """
    if dtype != "int8":
        return {name: _cast(vectors_NE, dtype)}
    integers_NE, scale_N = quantise(vectors_NE)
    return {name: integers_NE, name + SCALE: scale_N}


def ragged(tensors: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Return ragged tensors, with one, several or no values per row, and their offsets."""
    made: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        made |= {name + VALUES: values, name + OFFSETS: offsets}
    return made


def store_plain(values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert values other than vectors, such as scores; int8 stores them in float16."""
    return _cast(values, "float16" if dtype == "int8" else dtype)


def gather_vectors(column: "ColumnReader", name: str, rows: np.ndarray) -> np.ndarray:
    """Return vectors of rows, [n, E]: float32 for int8, otherwise in the storage type."""
    values = column.gather(name, rows)
    if name + SCALE not in column.tensors:
        return values
    return restore(values, column.gather(name + SCALE, rows))


def gather_ragged_vectors(column: "ColumnReader", name: str, rows: np.ndarray) -> np.ndarray:
    """Return all vectors of rows of a ragged tensor, as :func:`gather_vectors` does."""
    values, _ = column.gather_ragged(name, rows)
    if f"{name}{SCALE}.values" not in column.tensors:
        return values
    scales, _ = column.gather_ragged(name + SCALE, rows)
    return restore(values, scales)


def quantise(vectors_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantise vectors to integers int8[N, E] and scales float32[N].

    A vector of zeros has scale 0. The scale of a row that is not finite is not finite either.
    """
    vectors_NE = np.asarray(vectors_NE, dtype=np.float32)
    scale_N = np.abs(vectors_NE).max(axis=1, initial=0.0) / np.float32(_MOST)
    usable_N = np.isfinite(scale_N) & (scale_N > 0)
    divisor_N = np.where(usable_N, scale_N, np.float32(1))
    # Clipped, because the quotient by a subnormal scale can exceed 127.
    scaled_NE = np.where(usable_N[:, None], vectors_NE, 0) / divisor_N[:, None]
    return np.clip(np.rint(scaled_NE), -_MOST, _MOST).astype(np.int8), scale_N


def restore(integers_NE: np.ndarray, scale_N: np.ndarray) -> np.ndarray:
    """Restore vectors float32[N, E] from the result of :func:`quantise`."""
    vectors_NE = integers_NE.astype(np.float32)
    vectors_NE *= scale_N[:, None]
    return vectors_NE


def vector_bytes(width: int, dtype: str) -> int:
    """Return the bytes of one stored vector of ``width`` values."""
    return width + 4 if dtype == "int8" else width * np.dtype(dtype).itemsize


def value_bytes(dtype: str) -> int:
    """Return the bytes of one value stored by :func:`store_plain`, such as a score."""
    return 2 if dtype == "int8" else np.dtype(dtype).itemsize


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert to the storage type; overflow gives infinity, which the writer refuses."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)
