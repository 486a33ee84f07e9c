"""Pooling of many vectors to one: additive attention, mean, first token.

Shape legend: B batch, S slots (tokens of a text or articles of a history), D width, Q query width.
"""

import torch
from torch import Tensor, nn


def _widen(tensor: Tensor) -> Tensor:
    """Convert half precision to fp32; keep wider types."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def masked_softmax(scores_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
    """Return the softmax over unmasked slots, computed in fp32 at least.

    Args:
        scores_BS: ``[B, S]`` scores.
        mask_BS: ``[B, S]``, nonzero in slots that count; None counts all slots.

    Returns:
        ``[B, S]`` weights: zero in masked slots, with a sum of one over the others; all zero in a
        row without unmasked slots.
    """
    scores_BS = _widen(scores_BS)
    if mask_BS is None:
        return torch.softmax(scores_BS, dim=-1)
    keep_BS = mask_BS.bool()
    scores_BS = scores_BS.masked_fill(~keep_BS, torch.finfo(scores_BS.dtype).min)
    return torch.softmax(scores_BS, dim=-1) * keep_BS


def weighted_sum(weights_BS: Tensor, vectors_BSD: Tensor) -> Tensor:
    """Sum the slots' vectors by weight, in the weights' precision even under autocast.

    Args:
        weights_BS: ``[B, S]``, fp32 or wider.
        vectors_BSD: ``[B, S, D]``.

    Returns:
        ``[B, D]`` in the dtype of the weights.
    """
    with torch.autocast(device_type=weights_BS.device.type, enabled=False):
        return torch.bmm(weights_BS.unsqueeze(1), vectors_BSD.to(weights_BS.dtype)).squeeze(1)


class AttentionPooling(nn.Module):
    """Additive attention with one learned query: softmax of ``w . tanh(W h + b)`` (the paper's).

    The released code divides by (sum + 1e-8) and does not subtract the maximum; softmax is the same
    function up to that constant, without the overflow.
    """

    def __init__(self, width: int, query_dim: int):
        """Make the layer.

        Args:
            width: D, width of the vectors to pool.
            query_dim: Q, width of the query.
        """
        super().__init__()
        self.key = nn.Linear(width, query_dim)
        self.query = nn.Linear(query_dim, 1)

    def forward(self, vectors_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """Pool ``[B, S, D]`` to ``[B, D]`` by attention.

        Args:
            vectors_BSD: ``[B, S, D]``.
            mask_BS: ``[B, S]``, nonzero in slots that count; None counts all slots.

        Returns:
            ``[B, D]``, fp32 or wider; zero in a row without unmasked slots.
        """
        keys_BSQ = torch.tanh(self.key(vectors_BSD.to(self.key.weight.dtype)))
        scores_BS = self.query(keys_BSQ).squeeze(-1)
        return weighted_sum(masked_softmax(scores_BS, mask_BS), vectors_BSD)


class MeanPooling(nn.Module):
    """Mean of the unmasked slots."""

    def forward(self, vectors_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """Pool ``[B, S, D]`` to ``[B, D]``; see :class:`AttentionPooling` for the mask."""
        equal_BS = torch.zeros_like(vectors_BSD[..., 0])
        return weighted_sum(masked_softmax(equal_BS, mask_BS), vectors_BSD)


class FirstTokenPooling(nn.Module):
    """State of the first token ([CLS])."""

    def forward(self, vectors_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        """Pool ``[B, S, D]`` to ``[B, D]``; the mask is not used."""
        return _widen(vectors_BSD[:, 0])
