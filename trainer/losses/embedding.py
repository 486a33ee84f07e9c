"""Embedding loss: move the student's vectors towards the teachers' projected vectors.

Shape legend: M teachers, B samples, V vectors per sample, U distinct texts of a micro-batch, E news
width.

A vector's error depends on the vector alone, not on the sample that contains it. If a micro-batch
names each distinct text many times, :func:`vector_errors` can be computed once per text (``[U]``),
gathered by index (``errors_MU[:, index_BV]``) and given to :func:`weighted_distance`, instead of
gathering whole vectors for :func:`embedding_distance`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.losses.precision import widen


def vector_errors(student: Tensor, projected: Tensor) -> Tensor:
    """Return the mean squared error of every vector: a mean over its E dimensions.

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
    """Reduce vectors' errors to the loss ``1/B sum_b sum_i alpha_i mean_v error_ibv``.

    Args:
        errors_MBV: ``[M, B, V]`` from :func:`vector_errors`.
        weights_MB: ``[M, B]`` from :func:`trainer.losses.teacher_weights.teacher_weights` (alpha or
            beta).
        mask_BV: ``[B, V]``, nonzero for vectors that count; None counts all. The mean of a sample
            is over the vectors that count; a sample without such vectors adds nothing.

    Returns:
        Scalar, mean over the samples.
    """
    if mask_BV is None:
        errors_MB = errors_MBV.mean(dim=-1)
    else:
        keep_BV = mask_BV.bool()
        # Not a product with the mask: a masked slot may hold anything, NaN included.
        total_MB = errors_MBV.masked_fill(~keep_BV, 0.0).sum(dim=-1)
        errors_MB = total_MB / keep_BV.sum(dim=-1).clamp(min=1)
    return (weights_MB.detach() * errors_MB).sum(dim=0).mean()


def embedding_distance(
    student_BVE: Tensor,
    projected_BVE: Sequence[Tensor],
    weights_MB: Tensor,
    mask_BV: Tensor | None = None,
) -> Tensor:
    """Compute one term of the embedding loss: the distance of a group of vectors.

    The loss of a stage is the sum of two terms, each a mean over its own vectors:

    - stage I: the 1 + N titles of a sample (``V = 1 + N``) and its body (``V = 1``);
    - stage II: the news of history and candidates (``V = H + C``; ``mask_BV`` leaves empty history
      slots out, None includes them as in the released code) and the user (``V = 1``).

    Args:
        student_BVE: ``[B, V, E]`` vectors of the student.
        projected_BVE: ``[B, V, E]`` for every teacher, projected to the student's space.
        weights_MB: ``[M, B]`` from :func:`trainer.losses.teacher_weights.teacher_weights`.
        mask_BV: ``[B, V]``, nonzero for vectors that count; None counts all.

    Returns:
        Scalar, mean over the samples.
    """
    errors_MBV = torch.stack([vector_errors(student_BVE, one_BVE) for one_BVE in projected_BVE])
    return weighted_distance(errors_MBV, weights_MB, mask_BV)
