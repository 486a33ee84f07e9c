"""Encoding speed of a model in articles per second, with ready tokens, after a warm-up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from trainer.evaluate.encode import encode_articles

if TYPE_CHECKING:
    from shards.texts import TextView

SAMPLE_ARTICLES = 1024
MAX_PASSES = 9


def articles_per_second(
    model: nn.Module,
    texts: TextView,
    rows: np.ndarray,
    *,
    budget_s: float = 1.0,
    **options: object,
) -> float:
    """Measure the articles encoded per second on a fixed sample.

    The result is the median over passes after one that does not count.

    Args:
        model: A news encoder or recommender.
        texts: Texts that the model reads of an article.
        rows: int64[N] article rows, from which the sample is taken evenly.
        budget_s: Seconds for the counted passes; there is at least one.
        options: As for :func:`trainer.evaluate.encode.encode_articles`.

    Returns:
        Articles per second of wall time on this machine, with its given threads.
    """
    if len(rows) == 0:
        return 0.0
    sample = rows[np.linspace(0, len(rows) - 1, min(SAMPLE_ARTICLES, len(rows))).astype(np.int64)]
    taken: list[float] = []
    for passes in range(MAX_PASSES + 1):
        start = time.perf_counter()
        encode_articles(model, texts, sample, **options)  # type: ignore[arg-type]
        if passes:  # the first pass warms caches and thread pools
            taken.append(time.perf_counter() - start)
            if sum(taken) >= budget_s:
                break
    return len(sample) / float(np.median(taken))
