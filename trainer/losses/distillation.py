"""Distillation loss: learn the teachers' soft label.

Shape legend: B samples, C candidates.
"""

from torch import Tensor
from torch.nn import functional as F

from trainer.losses.precision import widen


def distillation(
    student_scores_BC: Tensor,
    soft_scores_BC: Tensor,
    temperature: float = 1.0,
    temperature_squared: bool = True,
) -> Tensor:
    """Compute the cross-entropy of the student's softened scores with the teachers'.

    ``L_distill = T^2 * CE(softmax(sum_i alpha_i y_i / T), y_s / T)`` with T = T_DP in stage I and
    T_FT in stage II; summed over the candidates, mean over the samples. T^2 keeps the gradient's
    size when T changes; the released code leaves it out, which is the same at T = 1.

    Args:
        student_scores_BC: ``[B, C]`` raw scores of the student (y_s).
        soft_scores_BC: ``[B, C]`` from :func:`trainer.losses.teacher_weights.soft_label`; receives
            no gradient.
        temperature: T, above 0.
        temperature_squared: Multiply by T squared.

    Returns:
        Scalar, mean over the samples.
    """
    soft_BC = (widen(soft_scores_BC.detach()) / temperature).softmax(dim=-1)
    loss = F.cross_entropy(widen(student_scores_BC) / temperature, soft_BC)
    return loss * temperature**2 if temperature_squared else loss
