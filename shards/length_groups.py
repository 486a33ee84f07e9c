"""Texts cut into groups of like lengths, so that an encoder computes almost no padding."""

from itertools import pairwise

import numpy as np

WORTH = 32
"""A cut pays where it saves this share of the budget in padding: 128 tokens of 4,096, about what
starting a small encoder's layers costs on a CPU, and less than it costs for larger encoders."""


def most_groups(num_texts: int, max_tokens: int, batch_tokens: int) -> int:
    """The most sub-batches that the budget alone cuts ``num_texts`` texts of up to ``max_tokens``
    into, whatever their lengths: each takes at least so many as would fit if all were longest."""
    return -(-num_texts // max(batch_tokens // max_tokens, 1))


def length_groups(
    lengths: np.ndarray, batch_tokens: int, exactly: int | None = None
) -> list[np.ndarray]:
    """Cut texts into groups of like lengths under a budget of tokens.

    The texts are sorted by length, the longest first (so that a batch that does not fit in memory
    is the first one); each group takes as many as fit, and is cut further where that saves padding
    of a thirty-second of the budget or more, as a group has a cost of its own.

    Args:
        lengths: int64[n], of the texts in tokens.
        batch_tokens: tokens a group, padding to its longest text included; one text always fits.
        exactly: so many groups, whatever is saved; where there are fewer texts than groups, the
            last text comes again. At least as many as the budget needs.

    Returns:
        Places of the texts, int64[u] a group.

    Raises:
        ValueError: the budget needs more groups than ``exactly``.
    """
    order = np.argsort(-lengths, kind="stable")
    starts = [0]
    while starts[-1] < len(order):
        longest = max(int(lengths[order[starts[-1]]]), 1)
        starts.append(min(starts[-1] + max(batch_tokens // longest, 1), len(order)))
    if len(starts) == 1:
        return []
    if exactly is not None and len(starts) > exactly + 1:
        raise ValueError(
            f"{len(lengths)} texts need {len(starts) - 1} groups of {batch_tokens} tokens, "
            f"not {exactly}"
        )
    starts = _cut_further(lengths[order], starts, batch_tokens // WORTH, exactly)
    groups = [order[start:stop] for start, stop in pairwise(starts)]
    if exactly is not None:
        groups += [groups[-1][-1:]] * (exactly - len(groups))
    return groups


def _cut_further(
    lengths: np.ndarray, starts: list[int], worth: int, exactly: int | None
) -> list[int]:
    """Cut descending lengths where most padding is saved, until a cut saves less than ``worth``
    tokens, or there are ``exactly`` groups or one text a group."""
    best = {start: _best_cut(lengths, start, stop) for start, stop in pairwise(starts)}
    ends = dict(pairwise(starts))
    while exactly is None or len(ends) < exactly:
        start = max(best, key=lambda start: best[start])
        saved, at = best[start]
        if saved < 0 or (exactly is None and saved < max(worth, 1)):
            break
        stop = ends[start]
        ends[start], ends[at] = at, stop
        best[start], best[at] = _best_cut(lengths, start, at), _best_cut(lengths, at, stop)
    return [*sorted(ends), len(lengths)]


def _best_cut(lengths: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """(tokens saved, place) of the best cut of one group; -1 saved where it has a single text."""
    if stop - start < 2:
        return -1, start
    inner = np.arange(start + 1, stop)
    saved = (lengths[start] - lengths[inner]) * (stop - inner)
    at = int(np.argmax(saved))
    return int(saved[at]), int(inner[at])
