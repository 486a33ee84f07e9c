"""Measure how well a click log can be ranked, with MIND's metrics.

This module is deliberately separate from the evaluation of models: the ceiling must not share a
mistake with the models that are measured against it.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class RankingSums:
    """Running sums of the metrics of one ranking, over impressions."""

    impressions: int = 0
    sums: dict[str, float] = field(
        default_factory=lambda: {"auc": 0.0, "mrr": 0.0, "ndcg5": 0.0, "ndcg10": 0.0}
    )

    def add(self, scores: np.ndarray, clicked: np.ndarray, offsets: np.ndarray) -> None:
        """Add impressions.

        Args:
            scores: float64[K].
            clicked: bool[K].
            offsets: int64[n + 1] of the impressions.
        """
        values = per_impression(scores, clicked, offsets)
        self.impressions += len(offsets) - 1
        for name, value in values.items():
            self.sums[name] += float(value.sum())

    def means(self) -> dict[str, float]:
        """Return the unweighted mean over impressions of each metric."""
        return {name: value / max(self.impressions, 1) for name, value in self.sums.items()}


def per_impression(
    scores: np.ndarray, clicked: np.ndarray, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute MIND's four metrics for each impression (MIND's ``evaluate.py``).

    Ties count half in AUC; in the other metrics the later of two equal candidates comes first.

    Args:
        scores: float64[K], larger is better.
        clicked: bool[K]; every impression has at least one clicked and one other candidate.
        offsets: int64[n + 1] of the impressions.

    Returns:
        ``auc``, ``mrr``, ``ndcg5``, ``ndcg10``: float64[n] each.
    """
    count = len(offsets) - 1
    sizes = np.diff(offsets)
    rows = np.repeat(np.arange(count), sizes)
    positives = np.bincount(rows, weights=clicked, minlength=count)

    # AUC by the rank sum of the clicked candidates; equal scores share the mean of their ranks.
    order = np.lexsort((scores, rows))
    ascending = np.empty(len(scores), dtype=np.float64)
    start_of_group = np.ones(len(scores), dtype=bool)
    start_of_group[1:] = (np.diff(scores[order]) != 0) | (np.diff(rows[order]) != 0)
    starts = np.flatnonzero(start_of_group)
    group = np.cumsum(start_of_group) - 1
    stops = np.append(starts[1:], len(scores))
    ascending[order] = ((starts + stops - 1) / 2)[group] + 1 - offsets[rows[order]]
    rank_sum = np.bincount(rows, weights=ascending * clicked, minlength=count)
    auc = (rank_sum - positives * (positives + 1) / 2) / (positives * (sizes - positives))

    # The stable order reversed: best first, and the later of two equal scores before the
    # earlier.
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = offsets[1:][rows] - 1 - np.arange(len(scores))
    result = {"auc": auc}
    result["mrr"] = np.bincount(rows, weights=clicked / (rank + 1), minlength=count) / positives
    gains = clicked / np.log2(rank + 2.0)
    for depth in (5, 10):
        ideal = np.cumsum(1.0 / np.log2(np.arange(depth) + 2.0))
        best = ideal[np.minimum(positives, depth).astype(np.int64) - 1]
        found = np.bincount(rows, weights=gains * (rank < depth), minlength=count)
        result[f"ndcg{depth}"] = found / best
    return result
