"""Bring the student's vectors near the teachers' projected ones.

Shape legend: M teachers, B samples, V vectors a sample, U distinct texts of a micro-batch, E news
width.

A vector's error depends on the vector alone, not on the sample it appears in. Where a micro-batch
names each of its distinct texts many times, :func:`vector_errors` can be taken once a text
(``[U]``), gathered by index (``errors_MU[:, index_BV]``) and given to :func:`weighted_distance`,
instead of gathering whole vectors for :func:`embedding_distance`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.losses.precision import widen


def vector_errors(student: Tensor, projected: Tensor) -> Tensor:
    """Mean-squared error of every vector: a mean over its E dimensions, not a sum.

    Args:
        student: ``[..., E]`` vectors of the student.
        projected: ``[..., E]``, a teacher's vectors of the same texts, projected to the student's
            space (W_i h_i).

    Returns:
        ``[...]``; the gradient reaches the student and the projection.
    """
    return (widen(student) - widen(projected)).square().mean(dim=-1)


def weighted_distance(
    errors_MBV: Tensor, weights_MB: Tensor, mask_BV: Tensor | None = None
) -> Tensor:
    """From the errors of single vectors to the loss: ``1/B sum_b sum_i alpha_i mean_v error_ibv``.

    Args:
        errors_MBV: ``[M, B, V]`` of :func:`vector_errors`.
        weights_MB: ``[M, B]`` of :func:`trainer.losses.teacher_weights.teacher_weights` (alpha or
            beta).
        mask_BV: ``[B, V]``, nonzero where a vector counts; None counts all. The mean of a sample
            is over the vectors that count; a sample without any adds nothing.

    Returns:
        Scalar, mean over the samples.
    """
    if mask_BV is None:
        errors_MB = errors_MBV.mean(dim=-1)
    else:
        keep_BV = mask_BV.bool()
        # Not a product with the mask: a slot that does not count may hold anything, NaN included.
        total_MB = errors_MBV.masked_fill(~keep_BV, 0.0).sum(dim=-1)
        errors_MB = total_MB / keep_BV.sum(dim=-1).clamp(min=1)
    return (weights_MB.detach() * errors_MB).sum(dim=0).mean()


def embedding_distance(
    student_BVE: Tensor,
    projected_BVE: Sequence[Tensor],
    weights_MB: Tensor,
    mask_BV: Tensor | None = None,
) -> Tensor:
    """One term of the embedding loss: distance of a group of vectors from the teachers' ones.

    The loss of a stage is the sum of two terms, each a mean over its own vectors:

    - stage I: the 1 + N titles of a sample (``V = 1 + N``) and its body (``V = 1``);
    - stage II: the news of history and candidates (``V = H + C``; ``mask_BV`` leaves empty history
      slots out, None lets them take part as in the released code) and the user (``V = 1``).

    Args:
        student_BVE: ``[B, V, E]`` vectors of the student.
        projected_BVE: For every teacher ``[B, V, E]``, projected to the student's space.
        weights_MB: ``[M, B]`` of :func:`trainer.losses.teacher_weights.teacher_weights`.
        mask_BV: ``[B, V]``, nonzero where a vector counts; None counts all.

    Returns:
        Scalar, mean over the samples.
    """
    errors_MBV = torch.stack([vector_errors(student_BVE, one_BVE) for one_BVE in projected_BVE])
    return weighted_distance(errors_MBV, weights_MB, mask_BV)
