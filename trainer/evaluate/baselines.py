"""Scores without a model: the minimum that any recommender must exceed.

Legend: K candidates of some impressions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.errors import UsageError
from trainer.evaluate.pairs import TrainingLog

BASELINES = ("random", "popularity")
Baseline = Callable[[np.ndarray], np.ndarray]
"""Function from candidates int[K], article rows, to scores float64[K]; called for consecutive parts
of a log."""


def make_baseline(
    kind: str, num_articles: int, *, seed: int = 0, train: TrainingLog | None = None
) -> Baseline:
    """Return a baseline that is ready to score.

    Args:
        kind: ``random``: uniform random numbers, reproducible by the seed; ``popularity``: the
            article's clicks in the training log; articles without clicks tie at zero.
        num_articles: Number of articles in the set.
        seed: Seed of ``random``.
        train: Training log, for ``popularity``.

    Raises:
        UsageError: The baseline is unknown, or popularity lacks a training log.
    """
    if kind == "random":
        generator = np.random.default_rng(seed)
        return lambda candidates: generator.random(len(candidates))
    if kind != "popularity":
        raise UsageError(f"unknown baseline {kind!r}; expected one of {', '.join(BASELINES)}")
    if train is None:
        raise UsageError("the popularity baseline counts clicks: name the log with --train-clicks")
    counts = click_counts(train, num_articles).astype(np.float64)
    return lambda candidates: counts[candidates]


def click_counts(train: TrainingLog, num_articles: int) -> np.ndarray:
    """Count each article's clicks in a training log, int64[num_articles].

    Raises:
        DataError: The log has no labels.
    """
    counts = np.zeros(num_articles, dtype=np.int64)
    for part in train.parts():
        clicked = train.clicks.clicked(part.rows).astype(bool)
        counts += np.bincount(part.candidates[clicked], minlength=num_articles)
    return counts
