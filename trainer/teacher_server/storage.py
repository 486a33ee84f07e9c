"""How teachers' vectors and scores are stored: float16, float32, or int8 with a scale a row.

In int8 a vector is ``scale * q`` with integers q from -127 to 127, and ``scale`` the 127th part of
its largest absolute value: ``E + 4`` bytes a vector instead of ``2 E``. Scores stay in float16 in
that case: a teacher's weight on a sample follows from them, and they are two bytes a candidate.
Only NumPy here. Shapes: N vectors or impressions, E width, D vectors of a ragged tensor.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from shards.cell_tensors import OFFSETS, VALUES

if TYPE_CHECKING:
    from shards.columns import ColumnReader

DTYPES = ("float16", "float32", "int8")
"""How a teacher's outputs can be stored."""
SCALE = ".scale"
"""Ends the name of the tensor that holds the scales of an int8 one."""
_MOST = 127


class Ragged(NamedTuple):
    """Values of rows end to end; row ``i`` has those from ``offsets[i]`` to ``offsets[i + 1]``."""

    values: np.ndarray
    """[D, ...]."""
    offsets: np.ndarray
    """int64[N + 1], from 0."""


Values = np.ndarray | Ragged
"""What a tensor holds of N rows: vectors [N, E] or scores, one a row or ragged."""


def store_values(tensors: Mapping[str, Values], dtype: str) -> dict[str, np.ndarray]:
    """A cell's tensors: vectors as :func:`store` stores them, scores as :func:`store_plain`, and
    whole numbers as they are."""
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
    """All tensors of rows of a column, by the names that :func:`store_values` was given."""
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
    """A cell's tensors for vectors, one a row of its shard.

    What is not finite, in any dtype, makes a tensor that is not finite, which the column's writer
    refuses by row.

    Args:
        name: of the tensor; in int8 the scales are ``<name>.scale``, float32[N].
        vectors_NE: float32[N, E].
        dtype: one of ``DTYPES``.
    """
    if dtype != "int8":
        return {name: _cast(vectors_NE, dtype)}
    integers_NE, scale_N = quantise(vectors_NE)
    return {name: integers_NE, name + SCALE: scale_N}


def ragged(tensors: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors of which a row has no value, one or several: each with where its rows begin."""
    made: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        made |= {name + VALUES: values, name + OFFSETS: offsets}
    return made


def store_plain(values: np.ndarray, dtype: str) -> np.ndarray:
    """What is no row of vectors, such as scores: float16 under int8, otherwise of ``dtype``."""
    return _cast(values, "float16" if dtype == "int8" else dtype)


def gather_vectors(column: "ColumnReader", name: str, rows: np.ndarray) -> np.ndarray:
    """Vectors of rows, [n, E]: float32 where int8 is stored, otherwise in the stored dtype."""
    values = column.gather(name, rows)
    if name + SCALE not in column.tensors:
        return values
    return restore(values, column.gather(name + SCALE, rows))


def gather_ragged_vectors(column: "ColumnReader", name: str, rows: np.ndarray) -> np.ndarray:
    """All vectors of rows of a ragged tensor, end to end, as :func:`gather_vectors`."""
    values, _ = column.gather_ragged(name, rows)
    if f"{name}{SCALE}.values" not in column.tensors:
        return values
    scales, _ = column.gather_ragged(name + SCALE, rows)
    return restore(values, scales)


def quantise(vectors_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(integers int8[N, E], scales float32[N]) of vectors; a vector of zeros has scale 0.

    The scale of a row that is not finite is not finite either.
    """
    vectors_NE = np.asarray(vectors_NE, dtype=np.float32)
    scale_N = np.abs(vectors_NE).max(axis=1, initial=0.0) / np.float32(_MOST)
    usable_N = np.isfinite(scale_N) & (scale_N > 0)
    divisor_N = np.where(usable_N, scale_N, np.float32(1))
    # Clipped, because the quotient by a subnormal scale can be above 127.
    scaled_NE = np.where(usable_N[:, None], vectors_NE, 0) / divisor_N[:, None]
    return np.clip(np.rint(scaled_NE), -_MOST, _MOST).astype(np.int8), scale_N


def restore(integers_NE: np.ndarray, scale_N: np.ndarray) -> np.ndarray:
    """Vectors float32[N, E] of what :func:`quantise` gave."""
    vectors_NE = integers_NE.astype(np.float32)
    vectors_NE *= scale_N[:, None]
    return vectors_NE


def vector_bytes(width: int, dtype: str) -> int:
    """Bytes of one stored vector of ``width`` values."""
    return width + 4 if dtype == "int8" else width * np.dtype(dtype).itemsize


def value_bytes(dtype: str) -> int:
    """Bytes of one value that :func:`store_plain` stores, such as a score."""
    return 2 if dtype == "int8" else np.dtype(dtype).itemsize


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """To the stored type; what does not fit becomes infinite, which the writer refuses by row."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)
