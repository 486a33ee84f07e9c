"""What the two distillations share: stage I over titles and bodies, stage II over clicks.

Shapes: M teachers, B samples, C candidates, U distinct texts, E news width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config.schema import LossConfig
from trainer.losses.contrastive import contrastive
from trainer.losses.distillation import distillation
from trainer.losses.embedding import vector_errors
from trainer.losses.teacher_weights import soft_label, teacher_weights


def label_terms(
    scores_BC: Tensor, teacher_scores_MBC: Tensor, loss: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Each teacher's weight for each sample, and the two terms that learn from labels.

    Returns:
        ``[M, B]`` (alpha in stage I, beta in stage II), and ``target`` and ``distill``.
    """
    weights_MB = teacher_weights(teacher_scores_MBC)
    soft_BC = soft_label(teacher_scores_MBC, weights_MB)
    terms = {
        "target": contrastive(scores_BC),
        "distill": distillation(scores_BC, soft_BC, loss.temperature, loss.temperature_squared),
    }
    return weights_MB, terms


def teacher_errors(student_UE: Tensor, projected_UE: Sequence[Tensor]) -> Tensor:
    """Squared error of every distinct vector from each teacher's, [M, U]; computed once a text."""
    return torch.stack([vector_errors(student_UE, projected) for projected in projected_UE])


def weight_report(weights_MB: Tensor) -> dict[str, Tensor]:
    """Mean weight of every teacher, and the entropy of a sample's weights (log M if all are
    equal)."""
    entropy = -(weights_MB * weights_MB.clamp_min(1e-12).log()).sum(dim=0).mean()
    means = {f"teacher_weight_{m}": weight for m, weight in enumerate(weights_MB.mean(dim=1))}
    return {**means, "teacher_weight_entropy": entropy}


def loss_weights(loss: LossConfig) -> dict[str, float]:
    """Weights of the three terms of a distillation."""
    return {"target": loss.target, "distill": loss.distill, "embedding": loss.embedding}
