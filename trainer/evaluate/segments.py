"""Metrics over parts of a click log: by length of history, and by news seen in training or not.

Legend: n impressions, K candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.clicks import ClickColumn
from trainer.evaluate.metrics import Metrics

HISTORY_BUCKETS = ((0, 0), (1, 5), (6, 20), (21, 50), (51, None))
"""Clicks in a user's history, first and last of each bucket."""


def history_segments(metrics: Metrics, clicks: ClickColumn) -> dict[str, Any]:
    """Metrics by how many clicks the user's history holds; empty buckets are left out."""
    rows = np.arange(clicks.num_impressions, dtype=np.int64)
    lengths = clicks.reader.lengths("history", rows)
    segments = {}
    for first, last in HISTORY_BUCKETS:
        chosen = (lengths >= first) & (lengths <= (np.inf if last is None else last))
        name = f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
        segments[name] = _segment(metrics, chosen)
    return {name: segment for name, segment in segments.items() if segment["impressions"]}


def cold_segments(
    metrics: Metrics, clicks: ClickColumn, train: ClickColumn, num_articles: int
) -> dict[str, Any]:
    """Metrics where all, some or none of the clicked articles are cold: not in the training log.

    Args:
        metrics: Of all impressions of ``clicks``.
        clicks: The evaluated log, labelled.
        train: The training log, over the same articles.
        num_articles: Articles of the set.
    """
    known = seen_articles(train, num_articles)
    rows = np.arange(clicks.num_impressions, dtype=np.int64)
    candidates, offsets = clicks.candidates(rows)
    clicked = np.asarray(clicks.clicked(rows)).astype(bool)
    owner = np.repeat(rows, np.diff(offsets))[clicked]
    num_clicked = np.bincount(owner, minlength=len(rows))
    num_cold = np.bincount(owner, weights=~known[candidates[clicked]], minlength=len(rows))
    all_cold = (num_clicked > 0) & (num_cold == num_clicked)
    segments = {
        "clicked_all_cold": _segment(metrics, all_cold),
        "clicked_some_cold": _segment(metrics, (num_cold > 0) & ~all_cold),
        "clicked_all_seen": _segment(metrics, num_cold == 0),
    }
    segments = {name: segment for name, segment in segments.items() if segment["impressions"]}
    share = float((~known[candidates]).mean()) if len(candidates) else 0.0
    return {"cold_candidates_share": share, **segments}


def seen_articles(train: ClickColumn, num_articles: int) -> np.ndarray:
    """Which articles a log names as candidate or in a history, bool[num_articles]."""
    seen = np.zeros(num_articles, dtype=bool)
    for start in range(0, train.num_impressions, 65536):
        rows = np.arange(start, min(start + 65536, train.num_impressions), dtype=np.int64)
        seen[train.candidates(rows)[0]] = True
        seen[train.reader.gather_ragged("history", rows)[0]] = True
    return seen


def _segment(metrics: Metrics, chosen_n: np.ndarray) -> dict[str, Any]:
    part = metrics.subset(chosen_n)
    return {"impressions": part.num_impressions, **part.to_dict()}
