"""User encoder: the clicked articles' vectors become one user vector.

Shape legend: B users, H history slots, E news width, A heads.
"""

import torch
from torch import Tensor, nn

from trainer.models.configuration import RecommenderConfig
from trainer.models.pooling import AttentionPooling, MeanPooling


class HistorySelfAttention(nn.Module):
    """Multi-head self-attention among the clicked articles (NRMS), without output projection."""

    def __init__(self, width: int, num_heads: int):
        """Make the layer.

        Args:
            width: E; the heads are E / A wide each.
            num_heads: A.
        """
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """Attend.

        Args:
            history_BHE: ``[B, H, E]``.
            mask_BH: bool ``[B, H]``, True in slots that may be attended to; at least one a row.

        Returns:
            ``[B, H, E]``.
        """
        batch, slots, width = history_BHE.shape
        history_BHE = history_BHE.to(self.query.weight.dtype)
        split = (batch, slots, self.num_heads, width // self.num_heads)
        query, key, value = (
            layer(history_BHE).view(split).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_BH[:, None, None, :]
        )
        return attended.transpose(1, 2).reshape(batch, slots, width)


class LastKMean(nn.Module):
    """Mean of the last K slots that count, which are the most recent clicks. No parameters."""

    def __init__(self, last_k: int):
        """Make the layer; ``last_k`` is K."""
        super().__init__()
        self.last_k = last_k
        self.mean = MeanPooling()

    def forward(self, history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """Pool ``[B, H, E]`` to ``[B, E]``, fp32 or wider; at least one True in ``mask_BH``'s
        rows."""
        from_end_BH = mask_BH.flip(1).cumsum(dim=1).flip(1)  # 1 in the last slot that counts
        return self.mean(history_BHE, mask_BH & (from_end_BH <= self.last_k))


class UserEncoder(nn.Module):
    """Additive attention over the history (the paper's), after self-attention for NRMS; or the mean
    of the last clicked articles, which has no parameters but ``pad_doc``.

    Empty history slots, ``history_padding``:

    - ``mask``: left out. A user without any history is encoded as one click on the learned vector
      ``pad_doc``, in training and in use, so cold users get a trained vector.
    - ``learned`` (released code): while training, ``pad_doc`` fills the empty slots and takes
      part; in use they are left out, and a user without any history is the zero vector. The
      released code reads its *teachers* the training way: pass ``mask_history=False``.
    """

    def __init__(self, config: RecommenderConfig):
        """Make the encoder from its configuration."""
        super().__init__()
        self.history_padding = config.history_padding
        width = config.news_dim
        self.pad_doc = nn.Parameter(torch.empty(width))
        self.self_attention: HistorySelfAttention | None = None
        if config.user_encoder == "nrms":
            self.self_attention = HistorySelfAttention(width, config.user_heads)
        self.pooling: nn.Module
        if config.user_encoder == "last_k_mean":
            self.pooling = LastKMean(config.user_last_k)
        else:
            self.pooling = AttentionPooling(width, config.query_dim)

    def forward(
        self, history_BHE: Tensor, mask_BH: Tensor, mask_history: bool | None = None
    ) -> Tensor:
        """Encode users.

        Args:
            history_BHE: ``[B, H, E]`` vectors of the clicked articles; those of empty slots are
                not read.
            mask_BH: ``[B, H]``, nonzero in slots that hold a click.
            mask_history: Leave empty slots out (True), or let ``pad_doc`` take part in them
                (False). None follows ``history_padding``: True, except while training with
                ``learned``.

        Returns:
            ``[B, E]`` in fp32 or wider.
        """
        if mask_history is None:
            mask_history = not (self.history_padding == "learned" and self.training)
        if history_BHE.shape[1] == 0:
            history_BHE = history_BHE.new_zeros(len(history_BHE), 1, history_BHE.shape[2])
            mask_BH = mask_BH.new_zeros(len(mask_BH), 1)
        filled_BH = mask_BH.bool()
        pad_doc = self.pad_doc.to(history_BHE.dtype)
        history_BHE = torch.where(filled_BH.unsqueeze(-1), history_BHE, pad_doc)
        empty_B1 = ~filled_BH.any(dim=1, keepdim=True)
        last_H = torch.arange(filled_BH.shape[1], device=filled_BH.device) == filled_BH.shape[1] - 1
        # At least one slot a user can be attended to: softmax over nothing is not a number.
        attended_BH = filled_BH | (empty_B1 & last_H)
        if not mask_history:
            attended_BH = torch.ones_like(filled_BH)
        if self.self_attention is not None:
            history_BHE = self.self_attention(history_BHE, attended_BH)
        users_BE = self.pooling(history_BHE, attended_BH)
        if mask_history and self.history_padding == "learned":
            users_BE = users_BE.masked_fill(empty_B1, 0.0)
        return users_BE
