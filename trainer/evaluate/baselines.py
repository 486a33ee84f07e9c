"""Scores without a model: the floor that any recommender must clear.

Legend: K candidates of some impressions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.errors import UsageError
from trainer.evaluate.pairs import TrainingLog

BASELINES = ("random", "popularity")
Baseline = Callable[[np.ndarray], np.ndarray]
"""Scores float64[K] of candidates int[K], article rows, part after part of a log in its order."""


def make_baseline(
    kind: str, num_articles: int, *, seed: int = 0, train: TrainingLog | None = None
) -> Baseline:
    """A baseline, ready to score.

    Args:
        kind: ``random``: uniform random numbers, the same for the same seed; ``popularity``: the
            article's clicks in the training log; articles without any tie at zero.
        num_articles: Articles of the set.
        seed: Of ``random``.
        train: Training log, for ``popularity``.

    Raises:
        UsageError: Unknown baseline, or popularity without a training log.
    """
    if kind == "random":
        generator = np.random.default_rng(seed)
        return lambda candidates: generator.random(len(candidates))
    if kind != "popularity":
        raise UsageError(f"unknown baseline {kind!r}; there is {', '.join(BASELINES)}")
    if train is None:
        raise UsageError("the popularity baseline counts clicks: name the log with --train-clicks")
    counts = click_counts(train, num_articles).astype(np.float64)
    return lambda candidates: counts[candidates]


def click_counts(train: TrainingLog, num_articles: int) -> np.ndarray:
    """How often each article was clicked in a training log, int64[num_articles].

    Raises:
        DataError: The log has no labels.
    """
    counts = np.zeros(num_articles, dtype=np.int64)
    for part in train.parts():
        clicked = train.clicks.clicked(part.rows).astype(bool)
        counts += np.bincount(part.candidates[clicked], minlength=num_articles)
    return counts
