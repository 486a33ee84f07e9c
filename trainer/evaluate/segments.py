"""Metrics over parts of a click log.

The parts are by length of history, news seen in training or not, category of the clicked article,
and hour of the day.

Every segment is ``{"impressions", "auc", "mrr", "ndcg5", "ndcg10"}`` over the impressions that
count; empty segments are left out.

Legend: n impressions, K candidates, P clicked candidates.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from shards.clicks import ClickColumn
from shards.errors import DamageError
from shards.ragged import row_of_value
from shards.reader import ShardSet
from trainer.evaluate.metrics import Metrics
from trainer.evaluate.pairs import ClickLog, TrainingLog, log_parts

HISTORY_BUCKETS = ((0, 0), (1, 5), (6, 20), (21, 50), (51, None))
"""Clicks in a user's history, first and last of each bucket."""
MOST_CATEGORIES = 30
"""Largest number of categories with their own segment; those with fewer impressions share
``(other)``."""


def segments(metrics: Metrics, log: ClickLog, train: TrainingLog | None) -> dict[str, Any]:
    """Return all segments of an evaluation, by kind.

    Args:
        metrics: Metrics of all impressions of the log, in its order.
        log: The evaluated log, labelled.
        train: The training log, over the same articles; None leaves ``cold`` out.
    """
    found: dict[str, Any] = {"history": history_segments(metrics, log.clicks)}
    if train is not None:
        found["cold"] = cold_segments(metrics, log.clicks, train, log.articles.num_rows)
    by_category = category_segments(metrics, log.clicks, log.articles)
    if by_category:
        found["category"] = by_category
    found["hour"] = hour_segments(metrics, log.clicks)
    return found


def history_segments(metrics: Metrics, clicks: ClickColumn) -> dict[str, Any]:
    """Return metrics by the number of clicks in the user's history."""
    rows = np.arange(clicks.num_impressions, dtype=np.int64)
    lengths = clicks.reader.lengths("history", rows)
    names = {}
    for first, last in HISTORY_BUCKETS:
        chosen = (lengths >= first) & (lengths <= (np.inf if last is None else last))
        name = f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
        names[name] = chosen
    return _segments(metrics, names)


def hour_segments(metrics: Metrics, clicks: ClickColumn) -> dict[str, Any]:
    """Return metrics by the hour of the day.

    Hours are ``00`` to ``23`` by the log's own clock (UTC if a time names its zone); ``unknown``
    for impressions without a time.
    """
    time = clicks.time(np.arange(clicks.num_impressions, dtype=np.int64))
    hours = np.where(time < 0, -1, time // 3600 % 24)
    names = {f"{hour:02d}": hours == hour for hour in range(24)}
    return _segments(metrics, names | {"unknown": hours < 0})


def cold_segments(
    metrics: Metrics, clicks: ClickColumn, train: TrainingLog, num_articles: int
) -> dict[str, Any]:
    """Return metrics by whether all, some or none of the clicked articles are cold.

    Cold means not in the training log.

    Args:
        metrics: Metrics of all impressions of ``clicks``.
        clicks: The evaluated log, labelled.
        train: The training log, over the same articles.
        num_articles: Number of articles in the set.
    """
    known = seen_articles(train, num_articles)
    owner_P, article_P = clicked_articles(clicks)
    num_clicked = np.bincount(owner_P, minlength=clicks.num_impressions)
    num_cold = np.bincount(owner_P, weights=~known[article_P], minlength=clicks.num_impressions)
    all_cold = (num_clicked > 0) & (num_cold == num_clicked)
    names = {
        "clicked_all_cold": all_cold,
        "clicked_some_cold": (num_cold > 0) & ~all_cold,
        "clicked_all_seen": num_cold == 0,
    }
    shown = cold = 0
    for part in log_parts(clicks):
        shown += len(part.candidates)
        cold += int((~known[part.candidates]).sum())
    return {"cold_candidates_share": cold / max(shown, 1), **_segments(metrics, names)}


def category_segments(metrics: Metrics, clicks: ClickColumn, articles: ShardSet) -> dict[str, Any]:
    """Return metrics by the category of the clicked article.

    An impression with clicks in two categories counts in both. Articles without a category are
    ``(none)``, damaged ones ``(damaged)``.

    Args:
        metrics: Metrics of all impressions of ``clicks``.
        clicks: The evaluated log, labelled.
        articles: Article set of the log; only clicked articles are read.

    Returns:
        The metrics; empty if the articles have no categories, or the set is at a URL, from which
        its tars would have to be downloaded only for this.
    """
    if "category" not in articles.manifest.fields or articles.mirror is not None:
        return {}
    owner_P, article_P = clicked_articles(clicks)
    clicked, which_P = np.unique(article_P, return_inverse=True)
    numbers: dict[str, int] = {}
    code = np.array(
        [numbers.setdefault(_category(articles, row), len(numbers)) for row in clicked.tolist()],
        dtype=np.int64,
    )
    # Each (impression, category) once, even if several clicks are of the category.
    pairs = np.unique(owner_P * max(len(numbers), 1) + code[which_P])
    owner, code = pairs // max(len(numbers), 1), pairs % max(len(numbers), 1)
    counts = Counter({name: int((code == number).sum()) for name, number in numbers.items()})
    own = [name for name, _ in counts.most_common(MOST_CATEGORIES)]
    names = {name: [numbers[name]] for name in sorted(own)}
    names["(other)"] = [number for name, number in numbers.items() if name not in names]
    chosen = {}
    for name, codes in names.items():
        chosen[name] = np.zeros(clicks.num_impressions, dtype=bool)
        chosen[name][owner[np.isin(code, codes)]] = True
    return _segments(metrics, chosen)


def clicked_articles(clicks: ClickColumn) -> tuple[np.ndarray, np.ndarray]:
    """Return every click of a log as (impression int64[P], article int64[P])."""
    none = np.zeros(0, dtype=np.int64)
    owners, found = [none], [none]
    for part in log_parts(clicks):
        places = np.flatnonzero(clicks.clicked(part.rows))
        owners.append(part.rows[row_of_value(part.offsets, places)])
        found.append(part.candidates[places])
    return np.concatenate(owners), np.concatenate(found)


def seen_articles(train: TrainingLog, num_articles: int) -> np.ndarray:
    """Return which articles a training log names, bool[num_articles].

    Candidates and histories both count.
    """
    seen = np.zeros(num_articles, dtype=bool)
    for part in train.parts():
        seen[part.candidates] = True
        seen[train.clicks.reader.gather_ragged("history", part.rows)[0]] = True
    return seen


def _category(articles: ShardSet, row: int) -> str:
    try:
        return str(articles.sample(row).get("category") or "(none)")
    except DamageError:
        return "(damaged)"


def _segments(metrics: Metrics, names: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the segments of impressions bool[n] by name, without empty ones."""
    found = {}
    for name, chosen in names.items():
        part = metrics.subset(chosen)
        if part.num_impressions:
            found[name] = {"impressions": part.num_impressions, **part.to_dict()}
    return found
