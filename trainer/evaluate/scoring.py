"""User vectors and candidate scores of whole impressions, from article vectors.

Legend: N articles, n impressions, B impressions of one batch, H history slots, K candidates,
E news width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from trainer.evaluate.encode import inference

if TYPE_CHECKING:
    from shards.clicks import ClickColumn
    from trainer.models.recommender import Recommender


class ImpressionScores(NamedTuple):
    """What a recommender says about a list of impressions."""

    users: np.ndarray
    """float32[n, E] user vectors."""
    scores: np.ndarray
    """float32[K] raw scores of all candidates, impression after impression."""
    offsets: np.ndarray
    """int64[n+1]: impression i has scores ``offsets[i]:offsets[i+1]``."""


def score_impressions(
    model: Recommender,
    news_NE: np.ndarray,
    clicks: ClickColumn,
    *,
    rows: np.ndarray | None = None,
    history_length: int = 50,
    as_teacher: bool = False,
    batch_impressions: int = 512,
    device: str | torch.device = "cpu",
) -> ImpressionScores:
    """Score every candidate of impressions with the dot product of its vector and the user's.

    Args:
        model: A recommender; only its user encoder runs, on ``device``.
        news_NE: float32[N, E] article vectors, by article row. Rows that no chosen impression names
            are not read.
        clicks: Clicks of the impression set.
        rows: int64[n] impression rows; None takes all.
        history_length: Most recent clicks that are read.
        as_teacher: Read the user encoder the way the released code reads its teachers: a model
            trained with learned padding keeps it. Other models are not affected.
        batch_impressions: Impressions at a time.
        device: Where users are encoded and scored.

    Returns:
        User vectors, scores and offsets, in the order of ``rows``.
    """
    if rows is None:
        rows = np.arange(clicks.num_impressions, dtype=np.int64)
    learned = getattr(model.config, "history_padding", "mask") == "learned"
    mask_history = False if as_teacher and learned else None
    model = model.to(device)  # type: ignore[arg-type]
    users: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    with inference(model):
        for start in range(0, len(rows), batch_impressions):
            chosen = rows[start : start + batch_impressions]
            history_BH, mask_BH = clicks.history(chosen, history_length)
            history_BHE = torch.from_numpy(news_NE[np.maximum(history_BH, 0)]).to(device)
            mask = torch.from_numpy(np.asarray(mask_BH)).to(device)
            users_BE = model.encode_users(history_BHE, mask, mask_history).float()
            values, offsets = clicks.candidates(chosen)
            candidates_KE = torch.from_numpy(news_NE[values]).to(device)
            counts = torch.from_numpy(np.diff(offsets)).to(device)
            each_KE = users_BE.repeat_interleave(counts, dim=0)
            scores.append(model.score(candidates_KE.unsqueeze(1), each_KE)[:, 0].cpu().numpy())
            users.append(users_BE.cpu().numpy())
            sizes.append(np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([*sizes, np.zeros(0, np.int64)]))])
    width = news_NE.shape[1]
    return ImpressionScores(
        users=np.concatenate(users) if users else np.zeros((0, width), np.float32),
        scores=np.concatenate(scores) if scores else np.zeros(0, np.float32),
        offsets=offsets.astype(np.int64),
    )
