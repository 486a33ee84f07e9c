"""Scores without a model: the floor that any recommender must clear.

Legend: K candidates of all impressions.
"""

from __future__ import annotations

import numpy as np

from shards.clicks import ClickColumn
from trainer.errors import UsageError

BASELINES = ("random", "popularity")


def random_scores(num_candidates: int, seed: int) -> np.ndarray:
    """Uniform random numbers, float64[K], the same for the same seed."""
    return np.random.default_rng(seed).random(num_candidates)


def click_counts(train: ClickColumn, num_articles: int) -> np.ndarray:
    """How often each article was clicked in a training log, int64[num_articles]."""
    rows = np.arange(train.num_impressions, dtype=np.int64)
    candidates, _ = train.candidates(rows)
    clicked = np.asarray(train.clicked(rows)).astype(bool)
    return np.bincount(candidates[clicked], minlength=num_articles)


def baseline_scores(
    kind: str,
    candidates: np.ndarray,
    num_articles: int,
    *,
    seed: int = 0,
    train: ClickColumn | None = None,
) -> np.ndarray:
    """Scores of all candidates by a baseline.

    Args:
        kind: ``random``, or ``popularity``: the article's clicks in the training log; articles
            without any tie at zero.
        candidates: int[K] article rows.
        num_articles: Articles of the set.
        seed: Of ``random``.
        train: Training log, for ``popularity``.

    Returns:
        float64[K].

    Raises:
        UsageError: Unknown baseline, or popularity without a training log.
    """
    if kind == "random":
        return random_scores(len(candidates), seed)
    if kind != "popularity":
        raise UsageError(f"unknown baseline {kind!r}; there is {', '.join(BASELINES)}")
    if train is None:
        raise UsageError("the popularity baseline counts clicks: name the log with --train-clicks")
    return click_counts(train, num_articles)[candidates].astype(np.float64)
