"""Evaluation shared among ranks: each encodes its part of the articles and ranks its part of the
impressions.

Every rank ends with the vectors of all articles and the metrics of all impressions, in the order of
the log, and takes the means over the same arrays: for the same vectors the numbers do not depend on
the ranks.

Legend: N articles, n impressions, E news width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.evaluate.encode import encode_articles
from trainer.evaluate.metrics import METRIC_NAMES, Metrics, ranking_metrics
from trainer.evaluate.scoring import score_impressions

if TYPE_CHECKING:
    from shards.clicks import ClickColumn
    from shards.texts import TextView
    from trainer.models.recommender import Recommender

PART = 8192
"""Impressions that are scored and ranked at a time: their candidates stay small in memory."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate together; without arguments it is alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    group: Any = None
    """Process group on the CPU; None for the default group."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, on every rank.

        Args:
            array: Of any length; type and further dimensions are the same on all ranks.
        """
        if self.world_size == 1:
            return [array]
        import torch
        import torch.distributed as dist

        own = torch.from_numpy(np.ascontiguousarray(array))
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(own)
        dist.all_reduce(lengths, group=self.group)
        parts = []
        for source, length in enumerate(lengths.tolist()):
            part = own if source == self.rank else own.new_empty(length, *own.shape[1:])
            if length:
                dist.broadcast(part, src=source, group=self.group)
            parts.append(part.numpy())
        return parts


ALONE = Ranks()


def encode_shared(
    model: Any, texts: TextView, rows: np.ndarray, ranks: Ranks, **how: Any
) -> np.ndarray:
    """:func:`trainer.evaluate.encode.encode_articles` by all ranks together.

    Texts are dealt out by their length, so that all ranks have as much to do.

    Args:
        model: A ``NewsEncoder`` or a ``Recommender``, the same on every rank.
        texts: What the model reads of an article.
        rows: int64[N] article rows, the same on every rank.
        ranks: This process among the others.
        how: As for ``encode_articles``; progress is shown by rank 0 alone, of its own part.

    Returns:
        float32[N, E], the same on every rank, in the order of ``rows``.
    """
    how["progress"] = bool(how.get("progress")) and ranks.is_main
    by_length = np.argsort(texts.lengths(rows), kind="stable")
    shares = [np.sort(by_length[rank :: ranks.world_size]) for rank in range(ranks.world_size)]
    own = encode_articles(model, texts, rows[shares[ranks.rank]], **how)
    vectors_NE = np.empty((len(rows), own.shape[1]), dtype=np.float32)
    for places, part in zip(shares, ranks.all_gather(own), strict=True):
        vectors_NE[places] = part
    return vectors_NE


def measure(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    ranks: Ranks = ALONE,
    *,
    rows: np.ndarray | None = None,
    history_length: int = 50,
    device: str = "cpu",
) -> Metrics:
    """MIND's metrics of a recommender on labelled impressions, scored by all ranks together.

    Scores are measured part by part and dropped, so memory does not grow with the candidates.

    Args:
        model: A recommender, the same on every rank; only its user encoder runs.
        news_NE: float32[N, E] article vectors by row, the same on every rank.
        clicks: Clicks of the impression set.
        ranks: This process among the others.
        rows: int64[n] impression rows, the same on every rank; None takes all.
        history_length: Most recent clicks that are read.
        device: Where users are encoded and scored.

    Returns:
        Metrics with their per-impression values in the order of ``rows``, the same on every rank.

    Raises:
        DataError: The log has no labels, or a score is not finite.
    """
    if rows is None:
        rows = np.arange(clicks.num_impressions, dtype=np.int64)
    bounds = np.arange(ranks.world_size + 1) * len(rows) // ranks.world_size
    mine = rows[bounds[ranks.rank] : bounds[ranks.rank + 1]]
    values = [np.zeros((0, len(METRIC_NAMES)))]
    for start in range(0, len(mine), PART):
        part = mine[start : start + PART]
        scored = score_impressions(
            model, news_NE, clicks, rows=part, history_length=history_length, device=device
        )
        found = ranking_metrics(scored.scores, clicks.clicked(part), scored.offsets)
        values.append(np.stack([getattr(found, f"{name}_n") for name in METRIC_NAMES], axis=1))
    return metrics_of(np.concatenate(ranks.all_gather(np.concatenate(values))))


def metrics_of(values_n4: np.ndarray) -> Metrics:
    """Means of per-impression values.

    Args:
        values_n4: float64[n, 4] in the order of :data:`~trainer.evaluate.metrics.METRIC_NAMES`, NaN
            where an impression has no clicked or no other candidate.
    """
    empty = ranking_metrics(np.zeros(0), np.zeros(0), np.zeros(1, dtype=np.int64))
    arrays: dict[str, Any] = {
        f"{name}_n": values for name, values in zip(METRIC_NAMES, values_n4.T, strict=True)
    }
    return dataclasses.replace(empty, **arrays).subset(np.ones(len(values_n4), dtype=bool))
