"""Contrastive loss: cross-entropy of the true candidate over raw scores.

Shape legend: B samples, C candidates, N titles of the global batch, E news width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.losses.precision import widen


def contrastive(scores_BC: Tensor, target_B: Tensor | None = None) -> Tensor:
    """Compute the mean cross-entropy of the true candidate among C.

    ``L = -1/B sum_b log( exp(y_b,t) / sum_c exp(y_b,c) )``: the paper's L_DP over a body's own
    title and N others, and L_FT over a clicked article and S unclicked ones of the same impression
    (y-hat are the scores).

    Args:
        scores_BC: ``[B, C]`` raw scores (dot products), not probabilities.
        target_B: int64 ``[B]``, place of the true candidate; None means the first.

    Returns:
        Scalar, mean over the samples.
    """
    if target_B is None:
        target_B = torch.zeros(len(scores_BC), dtype=torch.long, device=scores_BC.device)
    return F.cross_entropy(widen(scores_BC), target_B)


def in_batch_scores(body_BE: Tensor, title_NE: Tensor) -> Tensor:
    """Return scores of every body with every title, for in-batch negatives.

    Args:
        body_BE: ``[B, E]`` bodies of this rank.
        title_NE: ``[N, E]`` titles of the global batch, ranks in order (N = B on a single rank).

    Returns:
        ``[B, N]`` dot products, in fp32 at least. The true titles are at :func:`in_batch_targets`.
    """
    with torch.autocast(device_type=body_BE.device.type, enabled=False):
        return widen(body_BE) @ widen(title_NE).T


def in_batch_targets(
    batch: int, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Return the places of the bodies' own titles among those of the global batch.

    Args:
        batch: B, samples of this rank.
        offset: Samples of the ranks before this one (rank times B).
        device: Device of the tensor.

    Returns:
        int64 ``[B]``.
    """
    return torch.arange(offset, offset + batch, device=device)
