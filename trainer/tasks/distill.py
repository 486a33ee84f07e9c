"""Common parts of both distillations: stage I on titles and bodies, stage II on clicks.

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
    """Compute each teacher's weight per sample, and the two loss terms from labels.

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
    """Return the squared error to each teacher for every distinct vector, [M, U]."""
    return torch.stack([vector_errors(student_UE, projected) for projected in projected_UE])


def weight_report(weights_MB: Tensor, teachers: Sequence[str]) -> dict[str, Tensor]:
    """Return every teacher's mean weight, and the mean entropy of the weights.

    The entropy of a sample's weights is log M if all weights are equal.
    """
    entropy = -(weights_MB * weights_MB.clamp_min(1e-12).log()).sum(dim=0).mean()
    means = zip(teachers, weights_MB.mean(dim=1), strict=True)
    return {**{weight_name(name): mean for name, mean in means}, "teacher/weight_entropy": entropy}


def weight_histograms(weights_MB: Tensor, teachers: Sequence[str]) -> dict[str, Tensor]:
    """Return every teacher's weights of single samples, between 0 and 1, for a histogram."""
    return {weight_name(name): row_B for name, row_B in zip(teachers, weights_MB, strict=True)}


def weight_name(teacher: str) -> str:
    """Return the metric name of a teacher's weight."""
    return f"teacher/{teacher}/weight"


def unnamed(teachers: Sequence[object]) -> list[str]:
    """Return names for teachers without names: 0, 1, 2 ..."""
    return [str(number) for number in range(len(teachers))]


def teacher_names(models: Sequence[str]) -> list[str]:
    """Return short unique names of teachers: the last parts of their folders.

    Args:
        models: Folders of the teachers; a repeated folder gets a number.
    """
    parts = [PurePath(model).parts or (".",) for model in models]
    for count in range(1, max((len(part) for part in parts), default=1) + 1):
        names = [".".join(part[-count:]).replace("/", "") for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}.{part[-1]}" for number, part in enumerate(parts)]


def loss_weights(loss: LossConfig) -> dict[str, float]:
    """Return the weights of the three terms of a distillation."""
    return {"target": loss.target, "distill": loss.distill, "embedding": loss.embedding}
