"""User vectors and candidate scores of whole impressions, from article vectors.

A user's history is the same in several impressions of a log (three on average in MIND), so every
distinct history is encoded once. Impressions are scored in blocks of users; a block's content
follows from the log alone, so the scores are equal to the bit on every rank.

Legend: N articles, n impressions, B impressions of one block, D distinct histories of it, H history
slots, K candidates, E news width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.histories import holders
from shards.ragged import offsets_from_lengths, ranges
from trainer.evaluate.encode import inference

if TYPE_CHECKING:
    from shards.clicks import ClickColumn
    from trainer.models.recommender import Recommender

BLOCK_USERS = 4096
"""Distinct histories per block, which one rank scores at a time."""
_BATCH_USERS = 512
_CPU_CHUNK_BYTES, _GPU_CHUNK_BYTES = 1 << 18, 1 << 28
"""Vectors of candidates gathered at a time: on a CPU, as many as stay in a core's cache."""


class HistoryGroups(NamedTuple):
    """Impressions in the order of their histories."""

    places_n: np.ndarray
    """int64[n]: impressions with the same history are consecutive, histories are in the order of
    their first appearance in the log."""
    starts: np.ndarray
    """int64[U+1]: history u belongs to ``places_n[starts[u]:starts[u+1]]``."""

    def num_blocks(self, block_users: int = BLOCK_USERS) -> int:
        """Return the number of blocks of ``block_users`` histories."""
        return -(-(len(self.starts) - 1) // block_users)


class ScoredBlock(NamedTuple):
    """Scores of some impressions."""

    places: np.ndarray
    """int64[B], index of each impression among the chosen ones."""
    scores: np.ndarray
    """float32[K] raw scores of their candidates, impression after impression."""
    offsets: np.ndarray
    """int64[B+1]: impression i of the block has scores ``offsets[i]:offsets[i+1]``."""


class ImpressionScores(NamedTuple):
    """Scores of a recommender for a list of impressions."""

    scores: np.ndarray
    """float32[K] raw scores of all candidates, impression after impression."""
    offsets: np.ndarray
    """int64[n+1]: impression i has scores ``offsets[i]:offsets[i+1]``."""


def group_by_history(
    clicks: ClickColumn, history_length: int, rows: np.ndarray | None = None
) -> HistoryGroups:
    """Group impressions with the same history.

    Args:
        clicks: Clicks of the impression set.
        history_length: How many most recent clicks are read.
        rows: int64[n] impression rows; None takes all.
    """
    holder = holders(clicks, history_length, rows)
    places = np.argsort(holder, kind="stable")
    held = holder[places]
    firsts = np.flatnonzero(np.diff(held, prepend=-1))
    return HistoryGroups(places, np.append(firsts, len(held)))


def score_impressions(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    *,
    rows: np.ndarray | None = None,
    history_length: int = 50,
    device: str | torch.device = "cpu",
) -> ImpressionScores:
    """Score every candidate by the dot product of its vector and the user's.

    Args:
        model: A recommender; only its user encoder runs, on ``device``.
        news_NE: float32[N, E] article vectors, by article row. Rows that the chosen impressions do
            not name are not read.
        clicks: Clicks of the impression set.
        rows: int64[n] impression rows; None takes all.
        history_length: How many most recent clicks are read.
        device: Device on which users are encoded and scored.

    Returns:
        Scores and offsets, in the order of ``rows``.
    """
    groups = group_by_history(clicks, history_length, rows)
    blocks = score_blocks(
        model, news_NE, clicks, groups, rows=rows, history_length=history_length, device=device
    )
    offsets = candidate_offsets(clicks, rows)
    scores = np.empty(int(offsets[-1]), dtype=np.float32)
    for block in blocks:
        lay_scores(scores, offsets, block.places, block.scores)
    return ImpressionScores(scores, offsets)


def score_blocks(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    groups: HistoryGroups,
    *,
    rows: np.ndarray | None = None,
    history_length: int = 50,
    device: str | torch.device = "cpu",
    share: tuple[int, int] = (0, 1),
    block_users: int = BLOCK_USERS,
) -> Iterator[ScoredBlock]:
    """Score impressions block by block.

    Args:
        model: As for :func:`score_impressions`, like the following arguments.
        news_NE: float32[N, E].
        clicks: Clicks of the impression set.
        groups: The impressions of ``rows``, from :func:`group_by_history`.
        rows: int64[n]; None takes all.
        history_length: How many most recent clicks are read.
        device: Device on which users are encoded and scored.
        share: (r, W): only every W-th block, from the r-th on.
        block_users: Distinct histories per block.
    """
    model = model.to(device)  # type: ignore[arg-type]
    news = torch.from_numpy(news_NE).to(device)
    for block in range(share[0], groups.num_blocks(block_users), share[1]):
        starts = groups.starts[block * block_users : (block + 1) * block_users + 1]
        places = groups.places_n[starts[0] : starts[-1]]
        chosen = places if rows is None else rows[places]
        firsts = starts[:-1] - starts[0]
        history_DH, mask_DH = clicks.history(chosen[firsts], history_length)
        values, offsets = clicks.candidates(chosen)
        user_K = np.repeat(np.repeat(np.arange(len(firsts)), np.diff(starts)), np.diff(offsets))
        with inference(model):
            users_DE = encode_users(model, news, history_DH, mask_DH)
            scores = _dot(model, news, values, users_DE, user_K)
        yield ScoredBlock(places, scores, offsets)


def encode_users(
    model: Recommender, news_NE: Tensor, history_DH: np.ndarray, mask_DH: np.ndarray
) -> Tensor:
    """Return vectors float32[D, E] of users, computed in groups of similar lengths.

    Args:
        model: A recommender, on the device of ``news_NE``.
        news_NE: float32[N, E] article vectors.
        history_DH: int64[D, H] article rows, right-aligned, -1 in empty slots.
        mask_DH: bool[D, H], True in slots with a click.
    """
    users_DE = news_NE.new_zeros(history_DH.shape[0], news_NE.shape[1])
    lengths = mask_DH.sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), _BATCH_USERS):
        batch = order[start : start + _BATCH_USERS]
        # Slots that no user of the batch fills are masked, so they can be left out.
        width = history_DH.shape[1] - int(lengths[batch[0]])
        history = np.maximum(history_DH[batch, width:], 0)
        slots = torch.from_numpy(history).to(news_NE.device)
        mask = torch.from_numpy(np.ascontiguousarray(mask_DH[batch, width:])).to(news_NE.device)
        vectors = model.encode_users(news_NE[slots], mask).float()
        users_DE[torch.from_numpy(batch).to(news_NE.device)] = vectors
    return users_DE


def _dot(
    model: Recommender, news_NE: Tensor, values: np.ndarray, users_DE: Tensor, user_K: np.ndarray
) -> np.ndarray:
    """Return scores float32[K] of candidates, computed in chunks that fit the cache."""
    scores = np.empty(len(values), dtype=np.float32)
    chunk_bytes = _CPU_CHUNK_BYTES if news_NE.device.type == "cpu" else _GPU_CHUNK_BYTES
    chunk = max(chunk_bytes // (4 * news_NE.shape[1]), 1)
    candidates = torch.from_numpy(values).to(news_NE.device)
    users = torch.from_numpy(user_K).to(news_NE.device)
    for start in range(0, len(values), chunk):
        part = slice(start, start + chunk)
        shown_KE = news_NE.index_select(0, candidates[part])
        each_KE = users_DE.index_select(0, users[part])
        scores[part] = model.score(shown_KE.unsqueeze(1), each_KE)[:, 0].cpu().numpy()
    return scores


def candidate_offsets(clicks: ClickColumn, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the start of each impression's candidates in the concatenation of all, int64[n+1]."""
    if rows is None:
        rows = np.arange(clicks.num_impressions, dtype=np.int64)
    return offsets_from_lengths(clicks.reader.lengths("candidates", rows))


def lay_scores(
    scores_K: np.ndarray, offsets: np.ndarray, places: np.ndarray, values: np.ndarray
) -> None:
    """Write the scores of some impressions to their places among those of all.

    Args:
        scores_K: float32[K] of all impressions; is modified.
        offsets: int64[n+1] from :func:`candidate_offsets`.
        places: int64[B], indices of the impressions.
        values: float32, their scores, impression after impression.
    """
    starts = offsets[places]
    scores_K[ranges(starts, offsets[places + 1] - starts)] = values
