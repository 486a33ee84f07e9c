"""MIND's ranking metrics over ragged impressions, vectorised.

Every metric is computed per impression and then averaged with equal weight over the impressions
that have at least one clicked and one other candidate; the rest are skipped and counted (MIND has
none of them).

Order of equal scores. MIND's own procedure sorts ascending with NumPy's default sort and reverses
the result, so its order of ties is that of an unstable sort. Here the same is done with a *stable*
sort: of two equal scores the later candidate comes first. AUC does not depend on it: a tie counts
one half.

Legend: K candidates of all impressions, n impressions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import DataError

METRIC_NAMES = ("auc", "mrr", "ndcg5", "ndcg10")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Means over impressions, and the values they are means of.

    The arrays have one float64 an impression, NaN where the impression was skipped.
    """

    auc: float
    mrr: float
    ndcg5: float
    ndcg10: float
    num_impressions: int
    num_skipped: int
    auc_n: np.ndarray
    mrr_n: np.ndarray
    ndcg5_n: np.ndarray
    ndcg10_n: np.ndarray

    def to_dict(self) -> dict[str, float]:
        """The four means by name; NaN when every impression was skipped."""
        return {name: getattr(self, name) for name in METRIC_NAMES}

    def subset(self, chosen_n: np.ndarray) -> Metrics:
        """The same metrics over some impressions only.

        Args:
            chosen_n: bool[n].
        """
        arrays = {f"{name}_n": getattr(self, f"{name}_n")[chosen_n] for name in METRIC_NAMES}
        return _average(arrays)


def ranking_metrics(scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> Metrics:
    """AUC, MRR, nDCG@5 and nDCG@10 as MIND defines them.

    Per impression: AUC is the probability that a clicked candidate scores above another one (ties
    half); MRR is the sum of 1/rank over *all* clicked candidates divided by their number; nDCG@k
    has gains ``2**label - 1``, discounts ``log2(rank + 1)`` and is divided by the best possible
    DCG@k. Source: MIND (Wu et al., ACL 2020) and its published scoring procedure.

    Args:
        scores: float[K], higher is better, finite.
        labels: [K] of 0 and 1.
        offsets: int64[n+1]; impression i has candidates ``offsets[i]:offsets[i+1]``.

    Returns:
        Means over impressions and per-impression arrays.

    Raises:
        DataError: Lengths do not fit, a score is not finite, or a label is neither 0 nor 1.
    """
    scores, labels, offsets = _check(scores, labels, offsets)
    num = len(offsets) - 1
    owner = np.repeat(np.arange(num), np.diff(offsets))
    order = descending_order(scores, offsets)
    clicked = labels[order].astype(np.float64)
    # Sorting stays inside each impression, so `owner` is right before and after it. Rank 1 = best.
    rank = np.arange(len(scores)) - offsets[owner] + 1
    positives = np.bincount(owner, weights=clicked, minlength=num)
    counted = (positives > 0) & (positives < np.diff(offsets))
    arrays = {
        "auc_n": _auc(scores[order], clicked, rank, owner, offsets, positives),
        "mrr_n": _divide(np.bincount(owner, weights=clicked / rank, minlength=num), positives),
        "ndcg5_n": _ndcg(clicked, rank, owner, positives, 5),
        "ndcg10_n": _ndcg(clicked, rank, owner, positives, 10),
    }
    return _average({name: np.where(counted, value, np.nan) for name, value in arrays.items()})


def descending_order(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Indices that list each impression's candidates best first; of equal ones the later first.

    Args:
        scores: float[K].
        offsets: int64[n+1].

    Returns:
        int64[K]: a permutation of 0..K-1 that stays inside each impression's slice.
    """
    size = len(scores)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # Reversed input and a stable sort put the later of two equal candidates first.
    backwards = np.lexsort((-scores[::-1], owner[::-1]))
    return size - 1 - backwards


def ranks_without_ties(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rank of every candidate inside its impression, 1 = best, each rank once.

    Args:
        scores: float[K].
        offsets: int64[n+1].

    Returns:
        int64[K] in the candidates' own order.
    """
    order = descending_order(scores, offsets)
    ranks = np.empty(len(scores), dtype=np.int64)
    sizes = np.diff(offsets)
    ranks[order] = np.arange(len(scores)) - np.repeat(offsets[:-1], sizes) + 1
    return ranks


def _check(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)  # unsigned scores could not be negated
    offsets = np.asarray(offsets, dtype=np.int64)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise DataError(
            f"scores have shape {scores.shape} and labels {labels.shape}; expected two equal [K]"
        )
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(scores):
        raise DataError(f"offsets must run from 0 to the number of scores, {len(scores)}")
    if np.any(np.diff(offsets) < 0):
        raise DataError("offsets must not decrease")
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        impression = int(np.searchsorted(offsets, broken[0], side="right")) - 1
        raise DataError(
            f"{len(broken)} scores are not finite, the first in impression {impression}; "
            "a model that gives NaN or infinity cannot be evaluated"
        )
    if np.any((labels != 0) & (labels != 1)):
        raise DataError("labels must be 0 (not clicked) or 1 (clicked)")
    return scores, labels, offsets


def _auc(
    sorted_scores: np.ndarray,
    clicked: np.ndarray,
    rank: np.ndarray,
    owner: np.ndarray,
    offsets: np.ndarray,
    positives: np.ndarray,
) -> np.ndarray:
    """Mann-Whitney form: rank sum of the clicked, counted from the worst, minus its least value."""
    num, size = len(offsets) - 1, len(sorted_scores)
    if size == 0:
        return np.full(num, np.nan)
    starts = np.empty(size, dtype=bool)
    starts[0] = True
    starts[1:] = (sorted_scores[1:] != sorted_scores[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(starts)
    last = np.append(first[1:], size) - 1
    group = np.cumsum(starts) - 1
    mean_rank = (rank[first] + rank[last])[group] / 2.0  # equal scores share their mean rank
    sizes = np.diff(offsets).astype(np.float64)
    from_worst = sizes[owner] + 1.0 - mean_rank
    rank_sum = np.bincount(owner, weights=clicked * from_worst, minlength=num)
    return _divide(rank_sum - positives * (positives + 1) / 2, positives * (sizes - positives))


def _ndcg(
    clicked: np.ndarray, rank: np.ndarray, owner: np.ndarray, positives: np.ndarray, k: int
) -> np.ndarray:
    gain = np.where(rank <= k, clicked / np.log2(rank + 1.0), 0.0)
    actual = np.bincount(owner, weights=gain, minlength=len(positives))
    # With labels 0 and 1 the best list has its p clicked ones first: a prefix sum over min(p, k).
    prefix = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    best = prefix[np.minimum(positives, k).astype(np.int64)]
    return _divide(actual, best)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _average(arrays: dict[str, np.ndarray]) -> Metrics:
    counted = ~np.isnan(arrays["auc_n"])
    num_impressions = int(counted.sum())
    fields: dict[str, Any] = dict(arrays)
    for name in METRIC_NAMES:
        values = arrays[f"{name}_n"][counted]
        fields[name] = float(values.mean()) if num_impressions else float("nan")
    return Metrics(
        **fields,
        num_impressions=num_impressions,
        num_skipped=len(counted) - num_impressions,
    )
