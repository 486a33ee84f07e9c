"""Attention scores before the softmax, kept while a language model runs unchanged.

Scores are ``q k / sqrt(d)``, with position bias and mask. A family either calls the softmax itself
or uses torch's fused attention. Both calls are intercepted here, so that no family needs special
code and the fused attention stays in use.

Shape legend: U texts, L tokens, A attention heads.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from trainer.errors import ModelError

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


@contextmanager
def scores_kept(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Keep the scores of some layers while the block runs their model.

    Args:
        layers: Layers of a language model.

    Yields:
        For every layer the scores [U, A, L, L] of each of its attentions, once it has run.

    Raises:
        ModelError: A layer recomputes its activations in the backward pass.
    """
    if any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise ModelError(
            "attention scores are not available with run.activation_checkpointing: set it to false"
        )
    mode = _Keeper()
    kept: list[list[Tensor]] = [[] for _ in layers]
    hooks = []
    for layer, scores in zip(layers, kept, strict=True):
        hooks.append(layer.register_forward_pre_hook(partial(mode.enter, scores)))
        hooks.append(layer.register_forward_hook(mode.leave))
    try:
        with mode:
            yield kept
    finally:
        for hook in hooks:
            hook.remove()


class _Keeper(TorchFunctionMode):
    """Interceptor of all torch calls while active; keeps scores inside the layers it enters."""

    def __init__(self) -> None:
        super().__init__()
        self._scores: list[Tensor] | None = None

    def enter(self, scores: list[Tensor], *_: Any) -> None:
        """Start keeping scores; a hook before a layer's forward pass."""
        self._scores = scores

    def leave(self, *_: Any) -> None:
        """Stop keeping scores; a hook after a layer's forward pass."""
        self._scores = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._scores is not None:
            if func in _SOFTMAX:
                self._scores += _softmax_input(*args, **kwargs)
            elif func is functional.scaled_dot_product_attention:
                self._scores.append(_fused_scores(*args, **kwargs))
        return func(*args, **kwargs)


def _softmax_input(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> list[Tensor]:
    """Return the scores if the softmax is one over keys."""
    is_over_keys = dim in (-1, 3) and input.ndim == 4 and input.shape[2] == input.shape[3]
    return [input] if is_over_keys else []


def _fused_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute the scores that torch's fused attention does not return.

    The arguments are those of :func:`torch.nn.functional.scaled_dot_product_attention`.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * factor
    lowest = torch.finfo(scores.dtype).min
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, lowest)
    if attn_mask is None:
        return scores
    if attn_mask.dtype == torch.bool:
        return scores.masked_fill(~attn_mask, lowest)
    return scores + attn_mask
