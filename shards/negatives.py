"""Draw random numbers per sample, equal for any batch, rank, world size or machine.

Each draw is a hash of (seed, epoch, row, number of the draw), computed for a whole batch at once.
Samples share no state, so a sample's negatives never depend on the rest of its batch.
"""

import numpy as np

from shards.errors import DataError
from shards.kept import compact, expand
from shards.order import EpochOrder
from shards.ragged import offsets_from_lengths

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1
_WINDOW = 0x57494E444F575F41  # the same purpose, for draws within a window
_ARTICLES = 0x41525449434C4553  # separates draws over articles from draws over candidates


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix uint64 to uint64 by the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def sample_keys(purpose: int, seed: int, epochs: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Compute one key per sample, uint64[n]: a hash of (purpose, seed, epoch, unit).

    Args:
        purpose: a constant that separates different uses of the same sample.
        seed: the run's seed; any int.
        epochs: int64[n].
        units: int64[n].
    """
    key: np.ndarray = np.full(len(units), purpose & _MASK_64, dtype=np.uint64)
    for part in (np.full(len(units), seed & _MASK_64, dtype=np.uint64), epochs, units):
        key = _mix(key + _GOLDEN) ^ np.asarray(part).astype(np.uint64)
    return _mix(key + _GOLDEN)


def _uniform(keys: np.ndarray, draw: int, below: np.ndarray) -> np.ndarray:
    """Draw uniform integers in ``0 .. below - 1``, int64[n], for ``below`` int64[n].

    53 random bits times ``below``: the bias is under ``below / 2**53``.
    """
    bits = _mix(keys + np.uint64((draw + 1) * int(_GOLDEN) & _MASK_64)) >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-53 * below).astype(np.int64)


def draw_distinct(
    keys: np.ndarray, sizes: np.ndarray, count: int, exclude: np.ndarray | None = None
) -> np.ndarray:
    """Draw uniformly without replacement from ``range(sizes[i])``, for all samples i at once.

    The j-th draw chooses the rank of a value among the free ones; stepping over the taken values,
    in ascending order, turns the rank into the value. It takes exactly ``count`` hashes per sample,
    for any sizes, and rejects none.

    Args:
        keys: uint64[n], see :func:`sample_keys`.
        sizes: int64[n], values to choose from; at least one must be free.
        count: draws per sample.
        exclude: int64[n], one value of each range that is never drawn; None excludes nothing.

    Returns:
        int64[n, count]. If fewer than ``count`` values are free, the draws repeat in their
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
    """Draw negatives of post-training: ``count`` other articles per sample, from the whole corpus.

    N = 9 in the paper. The draw is uniform, gives distinct articles, never the sample's own row,
    and depends on (seed, epoch, row) alone.

    Args:
        seed: the run's seed.
        rows: int64[n], rows of the samples.
        epochs: int64[n], epoch of each sample (zeros draw the same negatives in every epoch).
        num_rows: articles in the set.
        count: negatives per sample.
        exclude: int64[n], the row that must not be drawn; ``rows`` if omitted.
        skipped: int64[k], rows that are never drawn (damaged samples), ascending.

    Returns:
        int64[n, count], rows of articles.

    Raises:
        DataError: the set has too few articles for ``count`` distinct others.
        ValueError: a row is outside the set.
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


class Negatives:
    """The negatives of all samples of a post-training run, according to its settings.

    Attributes:
        order: the order of the articles; its seed is the run's seed.
        count: N, negatives per sample.
        source: ``corpus`` or ``window``: the articles to draw from.
        is_static: whether every epoch repeats the draw of epoch 0.

    Raises:
        DataError: a window may be too small for ``count``.
    """

    def __init__(
        self, order: EpochOrder, count: int, source: str = "corpus", *, is_static: bool = False
    ) -> None:
        """Check the windows; draw nothing yet."""
        self.order = order
        self.count = count
        self.source = source
        self.is_static = is_static
        if source == "window":
            check_window_negatives(order, count)

    def draws(self, epochs: np.ndarray) -> np.ndarray:
        """Return the epoch whose draw each sample has, int64[n], from the samples' epochs."""
        return np.zeros_like(epochs) if self.is_static else epochs

    def of(self, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Draw N other articles per sample, int64[n, N], of rows int64[n] in epochs int64[n]."""
        order, epochs = self.order, self.draws(epochs)
        if self.source == "window":
            return draw_window_negatives(order, order.seed, rows, epochs, self.count)
        num_rows = int(order.shard_starts[-1])
        return draw_negatives(order.seed, rows, epochs, num_rows, self.count, skipped=order.skipped)


def check_window_negatives(order: EpochOrder, count: int) -> None:
    """Check that every window of every epoch has ``count`` others for each of its articles.

    Raises:
        DataError: a window may be too small; the message says what to change.
    """
    smallest = order.smallest_window()
    if smallest <= count:
        raise DataError(
            f"{count} negatives from the window (data.negatives_from) need windows of at least "
            f"{count + 1} articles, but with data.window_shards {order.window_shards} of "
            f"{len(order.counts)} shards one may hold {smallest}; change data.window_shards, or "
            "draw from the corpus"
        )


def draw_window_negatives(
    order: EpochOrder, seed: int, rows: np.ndarray, epochs: np.ndarray, count: int
) -> np.ndarray:
    """Draw negatives of post-training uniformly from each sample's own window of its epoch.

    The draw gives distinct articles, never the sample's own row. Like the window, it depends on
    (seed, epoch, row) alone, not on ranks. Only the window's shards are needed.

    Args:
        order: the order of the articles, checked by :func:`check_window_negatives`.
        seed: the run's seed.
        rows: int64[n], rows of the samples.
        epochs: int64[n], epoch of each sample.
        count: negatives per sample.

    Returns:
        int64[n, count], rows of articles.
    """
    rows, epochs = np.asarray(rows, dtype=np.int64), np.asarray(epochs, dtype=np.int64)
    keys = sample_keys(_WINDOW, seed, epochs, rows)
    out = np.empty((len(rows), count), dtype=np.int64)
    # Numbers that skip the damaged rows, which are never drawn.
    kept = compact(rows, order.skipped)
    first_kept = offsets_from_lengths(order.kept_counts)
    for epoch in np.unique(epochs):
        of_epoch = np.flatnonzero(epochs == epoch)
        windows = order.windows_of(int(epoch), rows[of_epoch])
        for window in np.unique(windows):
            here = of_epoch[windows == window]
            shards = order.shards_of_window(int(epoch), int(window))
            first_rows = first_kept[shards]
            starts = offsets_from_lengths(order.kept_counts[shards])  # shards laid end to end
            shard = np.searchsorted(first_rows, kept[here], side="right") - 1
            own = starts[shard] + kept[here] - first_rows[shard]
            sizes = np.full(len(here), starts[-1], dtype=np.int64)
            places = draw_distinct(keys[here], sizes, count, own)
            shard = np.searchsorted(starts, places, side="right") - 1
            out[here] = first_rows[shard] + places - starts[shard]
    return expand(out, order.skipped)
