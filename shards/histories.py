"""Group impressions with equal histories, so that each user vector is computed once.

In MIND a user has the same history in all impressions of a log, 3.1 of them on average, and these
are spread over the whole log. Histories are therefore compared over the whole set, not within a
shard. The first impression with a history *holds* the user vector: the cell of that impression's
shard stores it.
"""

import numpy as np

from shards.clicks import ClickColumn

_ROWS = 16384
"""Number of impressions per block."""
_MULTIPLIERS = ((0x9E3779B97F4A7C15, 0xD1B54A32D192ED03), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Odd numbers that scatter an article and its place in the history, for each half of a digest."""


def holders(clicks: ClickColumn, length: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Find, for each impression, the first one with the same last ``length`` clicks.

    A pure function of the log: every process that fills some cells finds the same holders.
    Histories are compared by digests of 128 bits, without Python objects: under a microsecond and
    about 60 bytes of memory per impression.

    Args:
        clicks: Clicks of the impression set.
        length: H, number of the most recent clicks that a user encoder reads.
        rows: int64[n] impression rows to compare; None takes the whole log.

    Returns:
        int32[n] positions in ``rows``: ``holders[i] <= i``; ``holders[h] == h`` for every holder h.
    """
    num = clicks.num_impressions if rows is None else len(rows)
    digests = np.empty((2, num), dtype=np.uint64)
    for start in range(0, num, _ROWS):
        stop = min(start + _ROWS, num)
        chosen = np.arange(start, stop) if rows is None else rows[start:stop]
        values, offsets = clicks.reader.gather_ragged("history", chosen, last=length)
        digests[:, start:stop] = _digests(values, offsets)
    order = np.lexsort((digests[1], digests[0]))  # stable: equal digests keep the log's order
    ranked = digests[:, order]
    is_first = np.ones(num, dtype=bool)
    is_first[1:] = (ranked[:, 1:] != ranked[:, :-1]).any(axis=0)
    out = np.empty(num, dtype=np.int32)
    out[order] = order[is_first][np.cumsum(is_first) - 1]
    return out


def _digests(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Compute a digest of 128 bits for each ragged row, uint64[2, n].

    A digest is the sum over the row's values, each scattered together with its place in the row (by
    the finalizer of SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
    """
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    out = np.empty((2, len(offsets) - 1), dtype=np.uint64)
    for half, (of_value, of_place) in enumerate(_MULTIPLIERS):
        # All arithmetic is modulo 2**64, including the difference of running sums.
        mixed = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(of_value)
        mixed += (places.astype(np.uint64) + np.uint64(1)) * np.uint64(of_place)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        sums = np.zeros(len(mixed) + 1, dtype=np.uint64)
        np.cumsum(mixed, out=sums[1:])
        out[half] = sums[offsets[1:]] - sums[offsets[:-1]]
    return out


def distinct(history_BH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find equal histories among a few impressions.

    Args:
        history_BH: int64[B, H] article rows, -1 in empty slots.

    Returns:
        (positions int64[D] of one impression per distinct history, int64[B] the number, below D, of
        each impression's history).
    """
    contiguous = np.ascontiguousarray(history_BH)
    width = contiguous.dtype.itemsize * contiguous.shape[1]
    if not width or not len(contiguous):
        places = np.zeros(min(len(contiguous), 1), dtype=np.int64)
        return places, np.zeros(len(contiguous), dtype=np.int64)
    keys = contiguous.view(np.dtype((np.void, width)))[:, 0]
    _, places, which = np.unique(keys, return_index=True, return_inverse=True)
    return places.astype(np.int64), which.astype(np.int64)
