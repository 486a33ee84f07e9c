"""MIND's ranking metrics over ragged impressions, vectorised.

Every metric is computed per impression and then averaged with equal weight over the impressions
that have at least one clicked and one other candidate; the rest are skipped and counted (MIND does
not have such impressions).

Only the ranks of *clicked* candidates enter a metric, and most impressions have one or two. So
nothing is sorted: each clicked candidate is compared with those of its impression. This is a
fraction of a sort's work, and exact. (It takes clicks times candidates comparisons: with dozens of
clicked candidates, a sort would be as fast.)

Order of equal scores: MIND's own procedure sorts ascending with NumPy's default sort and reverses
the result, so its order of ties is that of an unstable sort. Here it is the order of a *stable*
sort: of two equal scores, the later candidate comes first. AUC does not depend on the order: a tie
counts one half.

Legend: K candidates of all impressions, n impressions, P clicked candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from shards.ragged import offsets_from_lengths, ranges, row_of_value
from trainer.errors import DataError

METRIC_NAMES = ("auc", "mrr", "ndcg5", "ndcg10")
_COMPARISONS = 1 << 16
"""Comparisons at a time: few enough that their arrays stay in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Means over impressions, with the values of every impression.

    The arrays have one float64 per impression, NaN for skipped impressions.
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

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Metrics:
        """Make the means of per-impression values.

        Args:
            arrays: ``auc_n`` and the others, float64[n] each, NaN for skipped impressions.
        """
        counted = ~np.isnan(arrays["auc_n"])
        num_impressions = int(counted.sum())
        fields: dict[str, Any] = dict(arrays)
        for name in METRIC_NAMES:
            values = arrays[f"{name}_n"][counted]
            fields[name] = float(values.mean()) if num_impressions else float("nan")
        return cls(
            **fields,
            num_impressions=num_impressions,
            num_skipped=len(counted) - num_impressions,
        )

    @classmethod
    def join(cls, parts: Sequence[dict[str, np.ndarray]]) -> Metrics:
        """Make the means over several parts, each from :func:`impression_metrics`."""
        names = [f"{name}_n" for name in METRIC_NAMES]
        none = np.zeros(0)
        return cls.of({name: np.concatenate([none, *(p[name] for p in parts)]) for name in names})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the per-impression values in the form that :meth:`of` takes."""
        return {f"{name}_n": getattr(self, f"{name}_n") for name in METRIC_NAMES}

    def to_dict(self) -> dict[str, float]:
        """Return the four means by name; NaN if every impression was skipped."""
        return {name: getattr(self, name) for name in METRIC_NAMES}

    def subset(self, chosen_n: np.ndarray) -> Metrics:
        """Return the same metrics over some impressions only.

        Args:
            chosen_n: bool[n].
        """
        return Metrics.of({name: values[chosen_n] for name, values in self.arrays().items()})


def ranking_metrics(scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> Metrics:
    """Compute AUC, MRR, nDCG@5 and nDCG@10 as MIND defines them.

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
        DataError: Lengths do not match, a score is not finite, or a label is neither 0 nor 1.
    """
    return Metrics.of(impression_metrics(scores, labels, offsets))


def impression_metrics(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the per-impression values of :func:`ranking_metrics`, to join several parts.

    Args:
        scores: float[K].
        labels: [K] of 0 and 1.
        offsets: int64[n+1].

    Returns:
        ``auc_n``, ``mrr_n``, ``ndcg5_n``, ``ndcg10_n``: float64[n], NaN if an impression has no
        clicked or no other candidate.

    Raises:
        DataError: As for :func:`ranking_metrics`.
    """
    scores, labels, offsets = _check(scores, labels, offsets)
    num, sizes = len(offsets) - 1, np.diff(offsets)
    clicked = _clicked(scores, labels, offsets)
    positives = np.bincount(clicked.owner_P, minlength=num).astype(np.float64)
    counted = (positives > 0) & (positives < sizes)

    def total(values_P: np.ndarray) -> np.ndarray:
        """Sum over the clicked candidates of each impression; NaN if it is skipped."""
        sums = np.bincount(clicked.owner_P, weights=values_P, minlength=num)
        return np.where(counted, sums, np.nan)

    # Mann-Whitney: the rank sum of the clicked, counted from the worst, minus its minimum.
    from_worst = sizes[clicked.owner_P] - clicked.above_P - clicked.tied_P / 2.0
    won = total(from_worst) - positives * (positives + 1) / 2
    rank_P = 1 + clicked.above_P + clicked.tied_later_P
    arrays = {
        "auc_n": _divide(won, positives * (sizes - positives)),
        "mrr_n": _divide(total(1.0 / rank_P), positives),
    }
    for k in (5, 10):
        gain_P = np.where(rank_P <= k, 1.0 / np.log2(rank_P + 1.0), 0.0)
        # With labels 0 and 1, the best list has its p clicked ones first: a sum over min(p, k).
        best = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
        ideal = best[np.minimum(positives, k).astype(np.int64)]
        arrays[f"ndcg{k}_n"] = _divide(total(gain_P), ideal)
    return arrays


def ranks_without_ties(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rank every candidate in its impression, from 1 for the best, without ties.

    Args:
        scores: float[K].
        offsets: int64[n+1].

    Returns:
        int32[K] in the candidates' own order.
    """
    ranks = np.empty(len(scores), dtype=np.int32)
    sizes = np.diff(offsets)
    by_size = np.argsort(sizes, kind="stable")
    lengths, firsts = np.unique(sizes[by_size], return_index=True)
    for size, group in zip(lengths.tolist(), np.split(by_size, firsts[1:]), strict=True):
        # Impressions of equal size are rows of one matrix. With reversed input, a stable sort puts
        # the later of two equal candidates first.
        places = offsets[group][:, None] + np.arange(size - 1, -1, -1)
        best_first = np.argsort(-scores[places], axis=1, kind="stable")
        within = np.empty(best_first.shape, dtype=np.int32)
        np.put_along_axis(within, best_first, np.arange(1, size + 1, dtype=np.int32), axis=1)
        ranks[places] = within
    return ranks


class _Clicked(NamedTuple):
    """Position of the clicked candidates among those of their impression; int64[P] each."""

    owner_P: np.ndarray
    """Index of the impression."""
    above_P: np.ndarray
    """Number of candidates with a higher score."""
    tied_P: np.ndarray
    """Number of other candidates with the same score."""
    tied_later_P: np.ndarray
    """Number of those that come later in the list."""


def _clicked(scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray) -> _Clicked:
    """Compare every clicked candidate with all candidates of its impression."""
    places = np.flatnonzero(labels)
    owner = row_of_value(offsets, places)
    sizes, starts = np.diff(offsets)[owner], offsets[owner]
    found = _Clicked(owner, *(np.zeros(len(places), dtype=np.int64) for _ in range(3)))
    ends = offsets_from_lengths(sizes)
    for begin, end in _parts(ends):
        part = slice(begin, end)
        firsts = ends[part] - ends[begin]
        index = ranges(starts[part], sizes[part])
        other = scores[index]
        own = np.repeat(scores[places[part]], sizes[part])
        equal = other == own
        found.above_P[part] = np.add.reduceat(other > own, firsts, dtype=np.int32)
        found.tied_P[part] = np.add.reduceat(equal, firsts, dtype=np.int32) - 1
        if found.tied_P[part].any():
            later = equal & (index > np.repeat(places[part], sizes[part]))
            found.tied_later_P[part] = np.add.reduceat(later, firsts, dtype=np.int32)
    return found


def _parts(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut clicked candidates into parts; their comparisons end at ``ends``, int64[P + 1]."""
    begin = 0
    while begin < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[begin] + _COMPARISONS, side="right")) - 1
        end = max(last, begin + 1)
        yield begin, end
        begin = end


def _check(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    offsets = np.asarray(offsets, dtype=np.int64)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise DataError(
            f"scores have shape {scores.shape} and labels {labels.shape}; expected two equal [K]"
        )
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(scores):
        raise DataError(f"offsets must run from 0 to the number of scores, {len(scores)}")
    if np.any(np.diff(offsets) < 0):
        raise DataError("offsets must not decrease")
    finite = np.isfinite(scores)
    if not finite.all():
        broken = np.flatnonzero(~finite)
        impression = int(np.searchsorted(offsets, broken[0], side="right")) - 1
        raise DataError(
            f"{len(broken)} scores are not finite, the first in impression {impression}; "
            "a model that gives NaN or infinity cannot be evaluated"
        )
    if np.any((labels != 0) & (labels != 1)):
        raise DataError("labels must be 0 (not clicked) or 1 (clicked)")
    return scores, labels, offsets


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)
