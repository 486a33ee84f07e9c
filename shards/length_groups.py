"""Cut texts into groups of similar lengths, so that an encoder computes almost no padding."""

from itertools import pairwise

import numpy as np

WORTH = 32
"""Padding that a cut must save, as a share of the budget: 128 of 4,096 tokens. That is about the
cost of starting a small encoder's layers on a CPU, and less than this cost for larger encoders."""


def most_groups(num_texts: int, max_tokens: int, batch_tokens: int) -> int:
    """Bound the number of sub-batches that the budget alone makes from any ``num_texts`` texts.

    Each sub-batch takes at least as many texts as would fit if all had ``max_tokens`` tokens.
    """
    return -(-num_texts // max(batch_tokens // max_tokens, 1))


def length_groups(
    lengths: np.ndarray, batch_tokens: int, exactly: int | None = None
) -> list[np.ndarray]:
    """Cut texts into groups of similar lengths under a budget of tokens.

    The texts are sorted by length, the longest first (so that a batch that exceeds the memory comes
    first). Each group takes as many texts as fit; a further cut is made if it saves at least a
    thirty-second of the budget in padding, because each group has a cost of its own.

    Args:
        lengths: int64[n], lengths of the texts in tokens.
        batch_tokens: tokens per group, including padding to its longest text; one text always fits.
        exactly: number of groups to make, independent of the savings; if there are fewer texts than
            groups, the last text is repeated. Must be at least what the budget needs.

    Returns:
        Positions of the texts, int64[u] per group.

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
    """Cut descending lengths where a cut saves most padding.

    Stop when a cut saves less than ``worth`` tokens, at ``exactly`` groups, or at one text per
    group.
    """
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
    """Find one group's best cut: (tokens saved, position); -1 saved for one text."""
    if stop - start < 2:
        return -1, start
    inner = np.arange(start + 1, stop)
    saved = (lengths[start] - lengths[inner]) * (stop - inner)
    at = int(np.argmax(saved))
    return int(saved[at]), int(inner[at])
