"""Handle ragged data: one array of values and one of offsets.

Row i is ``values[offsets[i]:offsets[i + 1]]``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def offsets_from_lengths(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets int64[n + 1] of rows of these lengths, end to end."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """List ``starts[i] .. starts[i] + lengths[i] - 1`` for every i in turn, int64[total]."""
    offsets = offsets_from_lengths(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64)


def row_of_value(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the row of each of these positions in the values, int64[k]."""
    return np.searchsorted(offsets, values, side="right") - 1


def pad(
    values: np.ndarray, offsets: np.ndarray, width: int, fill: int, right_aligned: bool = False
) -> np.ndarray:
    """Lay ragged rows out as int64[n, width]; rows must not be longer than ``width``.

    Args:
        values: the values of the rows, end to end.
        offsets: int64[n + 1].
        width: columns of the result.
        fill: padding value.
        right_aligned: put each row's values at the right end instead of the left.
    """
    lengths = np.diff(offsets)
    out = np.full((len(lengths), width), fill, dtype=np.int64)
    starts = np.arange(len(lengths), dtype=np.int64) * width
    if right_aligned:
        starts += width - lengths
    out.reshape(-1)[ranges(starts, lengths)] = values
    return out


def join(rows: Sequence[Any], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Make (values of ``dtype``, offsets int64[n + 1]) of a list of rows."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    offsets = offsets_from_lengths(lengths)
    values = np.empty(int(offsets[-1]), dtype=dtype)
    for row, start in zip(rows, offsets, strict=False):
        values[start : start + len(row)] = row
    return values, offsets
