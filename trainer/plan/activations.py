"""Bytes of activations that a micro-batch keeps for its backward pass: an estimate.

The estimate counts the tensors that autograd saves in one layer of BERT (Korthikanti et al. 2022,
equation 2, with fused attention instead of the 5 a s / h term), for each slot (token or padding). A
slot of width D, feed-forward F, in fp32:

* inputs of the two norms and of the three matrices after the first, queries, keys, values, and the
  output of attention: 8 D; before and after the activation: 2 F;
* the masks of the two dropouts, one byte an element on a GPU (four on a CPU): 2 D.

Under autocast, matrices read half-width copies, the norms' inputs stay fp32, and each of the three
projections has its own copy: 24 D + 4 F bytes. Frozen layers below the trained ones keep nothing.
All sub-batches of a micro-batch are alive until its backward pass, so ``data.batch_tokens`` affects
only the padding here.
"""

from dataclasses import dataclass

from trainer.plan.sizes import TaskSize


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings besides the model that determine activations."""

    precision: str = "fp32"
    """Precision: ``fp32``, ``bf16`` or ``fp16``."""
    has_dropout: bool = True
    """Whether hidden dropout is above 0."""
    attention_dropout: bool = False
    """Whether attention dropout is above 0; on a CPU, attention then leaves the fused kernel."""
    is_checkpointed: bool = False
    """Value of ``run.activation_checkpointing``."""
    device: str = "gpu"
    """Kind of device: ``gpu`` or ``cpu``."""


def layer_bytes(size: TaskSize, slots: int, slots_squared: int, settings: Settings) -> int:
    """Return the bytes that one trained layer keeps.

    Args:
        size: The model.
        slots: Token slots of the micro-batch, padding included: sum of n x L over its sub-batches.
        slots_squared: Sum of n x L x L, with which attention's own matrices grow.
        settings: Precision, dropout, device.
    """
    D, F = size.backbone.width, size.backbone.inner
    is_half = settings.precision != "fp32"
    each = 24 * D + 4 * F if is_half else 4 * (8 * D + 2 * F)
    each += 4 * 4 + 4 * size.backbone.heads  # mean and deviation of two norms; log-sum of softmax
    if settings.has_dropout:
        each += 2 * D * (1 if settings.device == "gpu" else 2 if is_half else 4)
    squared = 0
    if settings.attention_dropout and settings.device == "cpu":
        squared = 3 * 4 * size.backbone.heads  # softmax, its dropout mask, and the output
    return slots * each + slots_squared * squared


def activation_bytes(size: TaskSize, slots: int, slots_squared: int, settings: Settings) -> int:
    """Return the bytes that a micro-batch keeps between its forward and backward pass.

    With checkpointing, every trained layer keeps only its input, and one layer at a time is
    recomputed.

    Args:
        size: The model.
        slots: Token slots of the micro-batch, padding included.
        slots_squared: Sum of n x L x L over its sub-batches.
        settings: Precision, dropout, checkpointing, device.
    """
    D, Q = size.backbone.width, size.query_dim
    layer = layer_bytes(size, slots, slots_squared, settings)
    kept = size.trained_layers * layer
    if settings.is_checkpointed and size.trained_layers:
        kept = size.trained_layers * slots * 4 * D + layer
    # Pooling: the states, its keys before and after tanh; embeddings, if trained: their norm.
    outside = 4 * (D + Q) + (8 * D if size.trains_embeddings else 0)
    casts = 0
    if settings.precision != "fp32":
        casts = 2 * size.trained_layers * size.backbone.layer_parameters
    return kept + slots * outside + casts
