"""Model FLOPs of a training step, without padding and recomputation.

Only the matrix products of the news encoder count, a multiply and an add as two, as in ``PaLM``
(Chowdhery et al. 2022, appendix B). With P weights in a layer's matrices, D its width and n tokens
in a text:

- forward: ``2 P n + 4 D n^2`` (the second term is attention: scores, then their weighted sum);
- backward: the same again for the gradient of the weights, if they are trained, and once more for
  the gradient of the input, if anything at or below the layer is trained. So 6 P n for a trained
  layer, 4 P n for a frozen one above a trained one, 2 P n for a frozen one below.

Embedding look-ups, norms, activations, the optimizer, the user encoder, the scores and the
projections of teachers' vectors are left out: together less than a few percent of an encoder. The
lowest trained layer above frozen ones is counted as if it passed its gradient on.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainer.errors import ModelError
from trainer.models.layers import find_layers
from trainer.models.news_encoder import NewsEncoder
from trainer.models.pooling import AttentionPooling

PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200 NVL", {"fp16": 835.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    ("H200", {"fp16": 989.5, "bf16": 989.5, "tf32": 494.7, "fp32": 67.0}),
    ("H100 NVL", {"fp16": 835.5, "bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    ("H100 PCIe", {"fp16": 756.5, "bf16": 756.5, "tf32": 378.0, "fp32": 51.0}),
    ("H100", {"fp16": 989.5, "bf16": 989.5, "tf32": 494.7, "fp32": 67.0}),
    ("A100", {"fp16": 312.0, "bf16": 312.0, "tf32": 156.0, "fp32": 19.5}),
    ("L40S", {"fp16": 362.0, "bf16": 362.0, "tf32": 183.0, "fp32": 91.6}),
    ("L4", {"fp16": 121.0, "bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    ("V100-PCIE", {"fp16": 112.0, "fp32": 14.0}),
    ("V100", {"fp16": 125.0, "fp32": 15.7}),
    ("T4", {"fp16": 65.0, "fp32": 8.1}),
)
"""Peaks in TFLOP/s without sparsity, from NVIDIA's data sheets, by a word of the device's name; the
first match counts."""


@dataclass(frozen=True)
class TextFlops:
    """FLOPs of a training step for a news encoder's texts, as a polynomial in their lengths.

    Attributes:
        per_text: FLOPs per text (Linear after the pooling).
        per_token: FLOPs per token that is not padding.
        per_square: FLOPs per squared token: a text of n tokens counts n^2 times (attention).
    """

    per_text: float
    per_token: float
    per_square: float

    def of(self, num_texts: float, num_tokens: float, num_squares: float) -> float:
        """Return the FLOPs of texts from their number, tokens and sum of squared lengths."""
        return (
            self.per_text * num_texts + self.per_token * num_tokens + self.per_square * num_squares
        )


def text_flops(model: nn.Module) -> TextFlops | None:
    """Count the FLOPs of a model's news encoder as it will be trained.

    Args:
        model: Any module that contains a news encoder, with whole or sharded weights.

    Returns:
        The FLOPs; None without a news encoder, or if its layers share one set of weights.
    """
    encoders = [module for module in model.modules() if isinstance(module, NewsEncoder)]
    if len(encoders) != 1:
        return None
    encoder = encoders[0]
    language_model = encoder.backbone.language_model
    try:
        _, layers = find_layers(language_model)
    except ModelError:
        return None
    in_layers = {id(parameter) for parameter in layers.parameters()}
    # Everything in the backbone outside its layers (embeddings, position bias) is below them.
    is_reached = any(
        p.requires_grad for p in encoder.backbone.parameters() if id(p) not in in_layers
    )
    per_token = per_square = 0.0
    # Layers below the split were computed once for all steps.
    split = encoder.backbone.split
    for layer in list(layers)[0 if split is None else split.num_below :]:
        weights = sum(_matrix(module) for module in layer.modules())
        is_trained = any(p.requires_grad for p in layer.parameters())
        is_reached = is_reached or is_trained
        per_token += 2.0 * weights * (1 + is_trained + is_reached)
        per_square += 4.0 * language_model.config.hidden_size * (1 + 2 * is_reached)
    # The pooling and the Linear are always trained; the gradient goes on if anything below is.
    passes = 2 + is_reached
    if isinstance(encoder.pooling, AttentionPooling):
        weights = sum(_matrix(module) for module in encoder.pooling.modules())
        per_token += 2.0 * (weights + language_model.config.hidden_size) * passes
    return TextFlops(2.0 * _matrix(encoder.dense) * 3, per_token, per_square)


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Return the peak of a known GPU in the run's precision; None for other devices.

    In TFLOP/s. fp32 means TF32 if torch may use it.
    """
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(name: str, precision: str) -> float | None:
    """Return the peak for a device name and a precision; None if unknown."""
    words = name.replace("Tesla ", "")
    for known, peaks in PEAK_TFLOPS:
        if f" {known}" in f" {words}":
            rest = f" {words}".split(f" {known}", 1)[1]
            if not rest[:1].isalnum():  # L40 is not L4
                return peaks.get(precision)
    return None


def _matrix(module: nn.Module) -> int:
    """Return the weights of a matrix product from its sizes, because ZeRO-3 empties tensors."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    if isinstance(module, Conv1D):
        return module.nx * module.nf
    return 0
