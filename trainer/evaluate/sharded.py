"""One evaluation over several ranks: each encodes its share of the articles and ranks its share of
the impressions.

Every rank ends with the vectors of all articles and the metrics of all impressions, in the order of
the log, and takes the means over the same arrays: for the same vectors the numbers do not depend on
the ranks.

Legend: N articles of the set, U articles that are used, n impressions, E news width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainer.errors import DataError
from trainer.evaluate.encode import encode_articles
from trainer.evaluate.metrics import METRIC_NAMES, Metrics, ranking_metrics
from trainer.evaluate.scoring import score_impressions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from shards.clicks import ClickColumn
    from shards.texts import TextView

PART = 8192
"""Impressions that are scored and ranked at a time: their candidates stay small in memory."""


class Ranks(Protocol):
    """This process among the others: :class:`trainer.engine.distributed.Distributed` is one."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The element-wise sum over all ranks, in the array's precision."""
        ...

    def maximum(self, values: list[int]) -> list[int]:
        """The element-wise maximum over all ranks."""
        ...


@dataclasses.dataclass(frozen=True)
class Alone:
    """The ranks of one process."""

    rank: int = 0
    world_size: int = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The array."""
        return array

    def maximum(self, values: list[int]) -> list[int]:
        """The values."""
        return values


def encode_shared(
    model: nn.Module, texts: TextView, rows: np.ndarray, ranks: Ranks, **how: Any
) -> np.ndarray:
    """Encode the texts of some articles, each rank its share; called by all ranks.

    Texts are dealt out by their length, so that all ranks have as much to do.

    Args:
        model: A ``NewsEncoder`` or a ``Recommender`` with the same weights on every rank.
        texts: What the model reads of an article.
        rows: int64[U] article rows, the same on every rank.
        ranks: The processes.
        **how: See :func:`trainer.evaluate.encode.encode_articles`.

    Returns:
        float32[U, E] on every rank, in the order of ``rows``.
    """
    if ranks.world_size == 1:
        return encode_articles(model, texts, rows, **how)
    by_length = np.argsort(texts.lengths(rows), kind="stable")
    mine = np.sort(by_length[ranks.rank :: ranks.world_size])
    vectors = encode_articles(model, texts, rows[mine], **how)
    # Every row is one rank's and zero elsewhere, so that the sum over ranks is exact.
    whole_UE = np.zeros((len(rows), vectors.shape[1]), dtype=np.float32)
    whole_UE[mine] = vectors
    return ranks.sum(whole_UE)


def measure_shared(
    model: nn.Module,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    rows: np.ndarray,
    ranks: Ranks,
    *,
    history_length: int,
    device: str | torch.device = "cpu",
    on_part: Callable[[int], None] | None = None,
) -> Metrics:
    """Rank the candidates of some impressions, each rank its share; called by all ranks.

    Args:
        model: A recommender with the same weights on every rank.
        news_NE: float32[N, E] article vectors, by article row, the same on every rank.
        clicks: The click log, labelled.
        rows: int64[n] impression rows, the same on every rank.
        ranks: The processes.
        history_length: Most recent clicks that are read.
        device: Where users are encoded and scored.
        on_part: Called after each part of this rank's share with the number of its impressions.

    Returns:
        The metrics of all n impressions, in the order of ``rows``, on every rank.

    Raises:
        DataError: Scores are not finite; raised on every rank.
    """
    bounds = np.arange(ranks.world_size + 1) * len(rows) // ranks.world_size
    first, last = int(bounds[ranks.rank]), int(bounds[ranks.rank + 1])
    values_4n = np.zeros((len(METRIC_NAMES), len(rows)))
    failed: DataError | None = None
    for start in range(first, last, PART):
        part = rows[start : min(start + PART, last)]
        scored = score_impressions(
            model,  # type: ignore[arg-type]
            news_NE,
            clicks,
            rows=part,
            history_length=history_length,
            device=device,
        )
        try:
            metrics = ranking_metrics(scored.scores, clicks.clicked(part), scored.offsets)
        except DataError as error:
            failed = error
            break
        values_4n[:, start : start + len(part)] = [
            getattr(metrics, f"{name}_n") for name in METRIC_NAMES
        ]
        if on_part is not None:
            on_part(len(part))
    # The others would wait for this rank's share for ever.
    (has_failed,) = ranks.maximum([int(failed is not None)])
    if has_failed:
        raise failed or DataError("the scores of another rank are not finite")
    return metrics_of(ranks.sum(values_4n))


def metrics_of(values_4n: np.ndarray) -> Metrics:
    """Means of per-impression values.

    Args:
        values_4n: float64[4, n] in the order of :data:`~trainer.evaluate.metrics.METRIC_NAMES`, NaN
            where an impression has no clicked or no other candidate.
    """
    empty = ranking_metrics(np.zeros(0), np.zeros(0), np.zeros(1, dtype=np.int64))
    arrays: dict[str, Any] = {
        f"{name}_n": values for name, values in zip(METRIC_NAMES, values_4n, strict=True)
    }
    return dataclasses.replace(empty, **arrays).subset(np.ones(values_4n.shape[1], dtype=bool))
