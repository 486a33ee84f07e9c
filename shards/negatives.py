"""Random draws that belong to a sample: the same for any batch, rank, world size or machine.

Each draw is a hash of (seed, epoch, row, number of the draw), computed for a whole batch at once.
Nothing is shared between samples, so a sample's negatives never depend on what else is in its
batch.
"""

import numpy as np

from shards.errors import DataError
from shards.kept import compact, expand

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1
_ARTICLES = 0x41525449434C4553  # keeps draws over articles apart from draws over candidates


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): uint64 to uint64, every bit spread."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def sample_keys(purpose: int, seed: int, epochs: np.ndarray, units: np.ndarray) -> np.ndarray:
    """One key a sample, uint64[n]: a hash of (purpose, seed, epoch, unit).

    Args:
        purpose: a constant that keeps different uses of the same sample apart.
        seed: the run's seed; any int.
        epochs: int64[n].
        units: int64[n].
    """
    key: np.ndarray = np.full(len(units), purpose & _MASK_64, dtype=np.uint64)
    for part in (np.full(len(units), seed & _MASK_64, dtype=np.uint64), epochs, units):
        key = _mix(key + _GOLDEN) ^ np.asarray(part).astype(np.uint64)
    return _mix(key + _GOLDEN)


def _uniform(keys: np.ndarray, draw: int, below: np.ndarray) -> np.ndarray:
    """Integers uniform in ``0 .. below - 1``, int64[n]; ``below`` int64[n], each at least 1.

    53 random bits times ``below``: the bias is under ``below / 2**53``.
    """
    bits = _mix(keys + np.uint64((draw + 1) * int(_GOLDEN) & _MASK_64)) >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-53 * below).astype(np.int64)


def draw_distinct(
    keys: np.ndarray, sizes: np.ndarray, count: int, exclude: np.ndarray | None = None
) -> np.ndarray:
    """Uniform draws without replacement from ``range(sizes[i])`` for every sample i at once.

    The j-th draw picks one of the values still free by its rank among them; stepping over the
    values taken, in ascending order, turns the rank into the value. Exactly ``count`` hashes a
    sample, whatever the sizes, and no rejection.

    Args:
        keys: uint64[n], see :func:`sample_keys`.
        sizes: int64[n], values to choose from; at least one must be free.
        count: draws a sample.
        exclude: int64[n], a value of each range that must not come; None excludes nothing.

    Returns:
        int64[n, count]. Where fewer than ``count`` values are free, the draws start over in their
        order.
    """
    n = len(keys)
    out = np.empty((n, count), dtype=np.int64)
    first = 0 if exclude is None else 1
    taken = np.empty((n, first + count), dtype=np.int64)  # its first columns, in ascending order
    if exclude is not None:
        taken[:, 0] = exclude
    free = np.asarray(sizes, dtype=np.int64) - first
    for j in range(count):
        value = _uniform(keys, j, np.maximum(free - j, 1))
        for k in range(first + j):
            value += (value >= taken[:, k]).astype(np.int64)
        if j > 0:
            again = j >= free
            if again.any():
                value[again] = out[again, j % free[again]]
        out[:, j] = value
        taken[:, first + j] = value
        taken[:, : first + j + 1].sort(axis=1)
    return out


def draw_negatives(
    seed: int,
    rows: np.ndarray,
    epochs: np.ndarray,
    num_rows: int,
    count: int,
    exclude: np.ndarray | None = None,
    skipped: np.ndarray | None = None,
) -> np.ndarray:
    """Negatives of post-training: ``count`` other articles a sample, uniform over the whole corpus.

    N = 9 in the paper. Distinct, never the sample's own row, keyed by (seed, epoch, row) alone.

    Args:
        seed: the run's seed.
        rows: int64[n], rows of the samples.
        epochs: int64[n], epoch of each sample (zeros draw the same negatives in every epoch).
        num_rows: articles in the set.
        count: negatives a sample.
        exclude: int64[n], the row that must not be drawn; ``rows`` if left out.
        skipped: int64[k], rows that are never drawn (damaged samples), ascending.

    Returns:
        int64[n, count], rows of articles.

    Raises:
        DataError: the set has too few articles for ``count`` distinct others.
        ValueError: a row is not within the set.
    """
    if count < 0:
        raise ValueError(f"count is {count}, expected at least 0")
    skipped = np.empty(0, dtype=np.int64) if skipped is None else skipped
    num_kept = num_rows - len(skipped)
    if num_kept <= count:
        raise DataError(
            f"{count} distinct negatives besides the article itself need at least {count + 1} "
            f"articles, the set has {num_kept}; lower data.num_negatives or use a larger set"
        )
    rows = np.asarray(rows, dtype=np.int64)
    own = rows if exclude is None else np.asarray(exclude, dtype=np.int64)
    if len(own) and (own.min() < 0 or own.max() >= num_rows):
        raise ValueError(f"rows lie within {own.min()} .. {own.max()}, the set has {num_rows}")
    keys = sample_keys(_ARTICLES, seed, np.asarray(epochs), rows)
    sizes = np.full(len(rows), num_kept, dtype=np.int64)
    return expand(draw_distinct(keys, sizes, count, compact(own, skipped)), skipped)
