"""Each teacher's weight on each sample, and the resulting soft label.

Shape legend: M teachers, B samples, C candidates.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.losses.precision import widen


def teacher_weights(teacher_scores_MBC: Tensor, target_B: Tensor | None = None) -> Tensor:
    """Return every teacher's weight on every sample: the better its answer, the higher.

    ``alpha_i = exp(-CE(y_i, y)) / sum_j exp(-CE(y_j, y))`` (stage I; beta_i in stage II), per
    sample, where y_i are teacher i's raw scores and y is the true label.

    Args:
        teacher_scores_MBC: ``[M, B, C]`` raw scores of the teachers.
        target_B: int64 ``[B]``, place of the true candidate; None means the first.

    Returns:
        ``[M, B]``, with a sum of one over the teachers; detached.
    """
    scores_MBC = widen(teacher_scores_MBC.detach())
    num_teachers, batch, _ = scores_MBC.shape
    if target_B is None:
        target_B = torch.zeros(batch, dtype=torch.long, device=scores_MBC.device)
    entropy = F.cross_entropy(
        scores_MBC.flatten(0, 1), target_B.repeat(num_teachers), reduction="none"
    )
    return torch.softmax(-entropy.view(num_teachers, batch), dim=0)


def soft_label(teacher_scores_MBC: Tensor, weights_MB: Tensor) -> Tensor:
    """Return the teachers' weighted scores ``sum_i alpha_i y_i`` (not probabilities).

    Args:
        teacher_scores_MBC: ``[M, B, C]`` raw scores of the teachers.
        weights_MB: ``[M, B]`` from :func:`teacher_weights`.

    Returns:
        ``[B, C]`` raw scores; detached.
    """
    return torch.einsum("mb,mbc->bc", weights_MB.detach(), widen(teacher_scores_MBC.detach()))
