"""Map rows to numbers that skip removed rows."""

import numpy as np


def compact(rows: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Map each kept row to its number among the kept rows.

    Args:
        rows: int64[n], kept rows only.
        skipped: int64[k], the removed rows, ascending.

    Returns:
        int64[n].
    """
    return rows - np.searchsorted(skipped, rows)


def expand(numbers: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Map numbers among the kept rows back to rows; the inverse of :func:`compact`."""
    return numbers + np.searchsorted(skipped - np.arange(len(skipped)), numbers, side="right")
