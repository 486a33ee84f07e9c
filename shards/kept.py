"""Numbering what is left of rows when some are left out."""

import numpy as np


def compact(rows: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """The number of each row among the rows that are kept.

    Args:
        rows: int64[n], none of them left out.
        skipped: int64[k], the rows that are left out, ascending.

    Returns:
        int64[n].
    """
    return rows - np.searchsorted(skipped, rows)


def expand(numbers: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """The inverse of :func:`compact`: the row of each number among those that are kept."""
    return numbers + np.searchsorted(skipped - np.arange(len(skipped)), numbers, side="right")
