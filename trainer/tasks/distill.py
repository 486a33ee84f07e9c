"""What the two distillations share: stage I over titles and bodies, stage II over clicks.

Shapes: M teachers, B samples, C candidates, U distinct texts, E news width.
"""

from collections.abc import Sequence
from pathlib import PurePath

import torch
from torch import Tensor

from trainer.config.distill import LossConfig
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


def weight_report(weights_MB: Tensor, teachers: Sequence[str]) -> dict[str, Tensor]:
    """Mean weight of every teacher, and the entropy of a sample's weights (log M if all are
    equal), mean over the samples."""
    entropy = -(weights_MB * weights_MB.clamp_min(1e-12).log()).sum(dim=0).mean()
    means = zip(teachers, weights_MB.mean(dim=1), strict=True)
    return {**{weight_name(name): mean for name, mean in means}, "teacher/weight_entropy": entropy}


def weight_histograms(weights_MB: Tensor, teachers: Sequence[str]) -> dict[str, Tensor]:
    """Every teacher's weights of single samples, between 0 and 1, for a histogram."""
    return {weight_name(name): row_B for name, row_B in zip(teachers, weights_MB, strict=True)}


def weight_name(teacher: str) -> str:
    """Name of the weight of a teacher among the metrics."""
    return f"teacher/{teacher}/weight"


def unnamed(teachers: Sequence[object]) -> list[str]:
    """Names of teachers that have none: 0, 1, 2 ..."""
    return [str(number) for number in range(len(teachers))]


def teacher_names(models: Sequence[str]) -> list[str]:
    """Short names of teachers: the last parts of their folders, as many as tell them apart.

    Args:
        models: Their folders; the same one twice gets a number.
    """
    parts = [PurePath(model).parts or (".",) for model in models]
    for count in range(1, max((len(part) for part in parts), default=1) + 1):
        names = [".".join(part[-count:]).replace("/", "") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}.{part[-1]}" for number, part in enumerate(parts)]


def loss_weights(loss: LossConfig) -> dict[str, float]:
    """Weights of the three terms of a distillation."""
    return {"target": loss.target, "distill": loss.distill, "embedding": loss.embedding}
