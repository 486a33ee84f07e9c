"""Evaluation shared among ranks: each encodes some articles and scores some impressions.

The parts do not depend on the number of ranks: articles are shared batch by batch, impressions
block by block, and both are cut from the whole. So the results equal those of one process, to the
last bit if every rank computes with the same number of threads.

Legend: N articles, n impressions, E news width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.errors import first_line
from trainer.errors import TrainingError
from trainer.evaluate.encode import article_batches, bar, encode_articles
from trainer.evaluate.metrics import METRIC_NAMES, Metrics, impression_metrics
from trainer.evaluate.scoring import (
    BLOCK_USERS,
    HistoryGroups,
    ImpressionScores,
    ScoredBlock,
    candidate_offsets,
    group_by_history,
    lay_scores,
    score_blocks,
)

if TYPE_CHECKING:
    from shards.clicks import ClickColumn
    from shards.texts import TextView
    from trainer.frozen.states import StateView
    from trainer.models.recommender import Recommender


@dataclass(frozen=True)
class Ranks:
    """The current process among those that evaluate together; by default a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    group: Any = None
    """Process group on the CPU; None for the default group."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all ranks on every rank.

        Args:
            array: Array of any length; type and further dimensions are the same on all ranks.

        Raises:
            TrainingError: Another rank has ended.
        """
        return self._collect(array, to_all=True)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all ranks on rank 0, an empty list elsewhere.

        Args:
            array: As for :meth:`all_gather`.

        Raises:
            TrainingError: Another rank has ended.
        """
        return self._collect(array, to_all=False)

    def _collect(self, array: np.ndarray, *, to_all: bool) -> list[np.ndarray]:
        if self.world_size == 1:
            return [array]
        import torch
        import torch.distributed as dist

        own = torch.from_numpy(np.ascontiguousarray(array))
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(own)
        parts = []
        try:
            dist.all_reduce(lengths, group=self.group)
            for source, length in enumerate(lengths.tolist()):
                part = own if source == self.rank else own.new_empty(length, *own.shape[1:])
                if not length:
                    pass
                elif to_all:
                    dist.broadcast(part, src=source, group=self.group)
                elif source != 0 and self.rank == source:
                    dist.send(part, dst=0, group=self.group)
                elif source != 0 and self.is_main:
                    dist.recv(part, src=source, group=self.group)
                parts.append(part.numpy())
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank} cannot reach another rank, whose own message says why it ended "
                f"({first_line(error)})"
            ) from error
        return parts if to_all or self.is_main else []


ALONE = Ranks()


@contextlib.contextmanager
def start_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun or ``accelerate launch`` started, if any.

    Yields:
        The current process among them. A process group that this function joined is left at the end
        of the block.

    Raises:
        UsageError: The launcher's variables contradict each other.
        TrainingError: MASTER_PORT is taken.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    from trainer.engine.distributed import close_group
    from trainer.engine.rendezvous import check_master_port
    from trainer.teacher_server.ranks import place, share_cores

    here = place()
    ranks = Ranks(here.rank, here.world_size, here.local_rank)
    if dist.is_initialized():
        yield ranks
        return
    check_master_port()
    share_cores(here)
    dist.init_process_group("gloo")
    try:
        yield ranks
    finally:
        close_group()


def encode_shared(
    model: Any, texts: TextView | StateView, rows: np.ndarray, ranks: Ranks, **how: Any
) -> np.ndarray:
    """Run :func:`trainer.evaluate.encode.encode_articles` on all ranks together.

    Args:
        model: A ``NewsEncoder`` or a ``Recommender``, the same on every rank.
        texts: As for ``encode_articles``.
        rows: int64[N] article rows.
        ranks: The current process among the others.
        how: As for ``encode_articles``; only rank 0 shows progress, of its own part.

    Returns:
        float32[N, E], the same on every rank.
    """
    how["progress"] = bool(how.get("progress")) and ranks.is_main
    cut = {name: how[name] for name in ("pad_to_max", "batch_tokens") if name in how}
    batches = article_batches(texts, rows, **cut)  # longest first: ranks get texts of all lengths
    shares = [batches[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    vectors_NE = encode_articles(model, texts, rows, batches=shares[ranks.rank], **how)
    if ranks.world_size > 1:
        for places, part in zip(
            map(_joined, shares),
            ranks.all_gather(vectors_NE[_joined(shares[ranks.rank])]),
            strict=True,
        ):
            vectors_NE[places] = part
    return vectors_NE


def measure(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    ranks: Ranks = ALONE,
    *,
    rows: np.ndarray | None = None,
    groups: HistoryGroups | None = None,
    history_length: int = 50,
    device: str = "cpu",
    progress: bool = False,
    block_users: int = BLOCK_USERS,
) -> Metrics:
    """Measure MIND's metrics of a recommender on labelled impressions, on all ranks together.

    Scores are measured block by block and dropped, so memory does not grow with the candidates.

    Args:
        model: A recommender, the same on every rank; only its user encoder runs.
        news_NE: float32[N, E] article vectors by row, the same on every rank.
        clicks: Clicks of the impression set.
        ranks: The current process among the others.
        rows: int64[n] impression rows; None takes all.
        groups: Groups of ``rows``, if known from an earlier call
            (:func:`trainer.evaluate.scoring.group_by_history`).
        history_length: How many most recent clicks are read.
        device: Device on which users are encoded and scored.
        progress: Whether rank 0 shows progress.
        block_users: Distinct histories per block.

    Returns:
        Metrics with their per-impression values in the order of ``rows``, the same on every rank.

    Raises:
        DataError: The log has no labels, or a score is not finite.
        TrainingError: Another rank has ended.
    """
    groups = groups or group_by_history(clicks, history_length, rows)
    places, values = [np.zeros(0, np.int64)], [np.zeros((0, len(METRIC_NAMES)))]
    how = {"history_length": history_length, "device": device, "block_users": block_users}
    for block in _own_blocks(model, news_NE, clicks, groups, ranks, progress, rows=rows, **how):
        labels = clicks.clicked(block.places if rows is None else rows[block.places])
        found = impression_metrics(block.scores, labels, block.offsets)
        places.append(block.places)
        values.append(np.stack([found[f"{name}_n"] for name in METRIC_NAMES], axis=1))
    all_places = ranks.all_gather(np.concatenate(places))
    all_values = ranks.all_gather(np.concatenate(values))
    arrays = {f"{name}_n": np.full(len(groups.places_n), np.nan) for name in METRIC_NAMES}
    for where, value in zip(all_places, all_values, strict=True):
        for column, array in enumerate(arrays.values()):
            array[where] = value[:, column]
    return Metrics.of(arrays)


def score_all(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    ranks: Ranks = ALONE,
    *,
    history_length: int = 50,
    device: str = "cpu",
    progress: bool = False,
    block_users: int = BLOCK_USERS,
) -> ImpressionScores | None:
    """Score every candidate of a log, labelled or not, on all ranks together.

    Args:
        model: As for :func:`measure`, like the following arguments.
        news_NE: float32[N, E].
        clicks: Clicks of the impression set.
        ranks: The current process among the others.
        history_length: How many most recent clicks are read.
        device: Device on which users are encoded and scored.
        progress: Whether rank 0 shows progress.
        block_users: Distinct histories per block.

    Returns:
        On rank 0 all scores (4 bytes per candidate) in the order of the log, on the others None.

    Raises:
        TrainingError: Another rank has ended.
    """
    groups = group_by_history(clicks, history_length)
    offsets = candidate_offsets(clicks)
    scores = np.empty(int(offsets[-1]) if ranks.is_main else 0, dtype=np.float32)
    blocks: list[ScoredBlock] = []
    how = {"history_length": history_length, "device": device, "block_users": block_users}
    for block in _own_blocks(model, news_NE, clicks, groups, ranks, progress, **how):
        if ranks.is_main:
            lay_scores(scores, offsets, block.places, block.scores)
        else:
            blocks.append(block)
    places = ranks.gather(_joined([block.places for block in blocks]))
    values = ranks.gather(
        np.concatenate([np.zeros(0, np.float32), *(block.scores for block in blocks)])
    )
    if not ranks.is_main:
        return None
    for where, value in zip(places, values, strict=True):
        lay_scores(scores, offsets, where, value)
    return ImpressionScores(scores, offsets)


def _own_blocks(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    groups: HistoryGroups,
    ranks: Ranks,
    progress: bool,
    **how: Any,
) -> Iterator[ScoredBlock]:
    """Yield this rank's share of the blocks; rank 0 shows its progress."""
    total = len(groups.places_n) // ranks.world_size
    share = (ranks.rank, ranks.world_size)
    with bar(total, "score", "impressions", progress and ranks.is_main) as shown:
        for block in score_blocks(model, news_NE, clicks, groups, share=share, **how):
            yield block
            shown.update(len(block.places))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
