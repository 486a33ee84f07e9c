"""Self-attention among the vectors of a history.

Shape legend: B users, H history slots, E news width, A heads.
"""

from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention among the clicked articles (NRMS), without output projection."""

    def __init__(self, width: int, num_heads: int):
        """Create the layer.

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
        """Attend among the articles of each history.

        Args:
            history_BHE: ``[B, H, E]``.
            mask_BH: bool ``[B, H]``, True in slots to attend to; at least one per row.

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
