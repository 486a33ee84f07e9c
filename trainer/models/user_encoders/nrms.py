"""NRMS (Wu et al., 2019): self-attention among the clicked articles, then additive attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config.ranges import Count
from trainer.errors import ConfigError
from trainer.models.user_encoders.base import UserEncoder

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Nrms(UserEncoder):
    """Additive attention after self-attention among the articles."""

    user_heads: Count = 16
    """Self-attention heads of the NRMS user encoder; each is ``news_dim / user_heads`` wide."""
    fixed = ("query_dim", "user_heads")

    def check(self, news_dim: int, history_length: int | None = None) -> None:
        """See :meth:`UserEncoder.check`."""
        if news_dim % self.user_heads:
            raise ConfigError(
                f"model.news_dim {news_dim} is not a multiple of model.user_heads "
                f"{self.user_heads}, which the NRMS user encoder needs"
            )

    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        """See :meth:`UserEncoder.layers`."""
        from trainer.models.pooling import AttentionPooling
        from trainer.models.self_attention import SelfAttention

        return {
            "self_attention": SelfAttention(news_dim, self.user_heads),
            "pooling": AttentionPooling(news_dim, query_dim),
        }

    def pool(self, layers: Mapping[str, nn.Module], history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """See :meth:`UserEncoder.pool`."""
        attended_BHE = layers["self_attention"](history_BHE, mask_BH)
        users_BE: Tensor = layers["pooling"](attended_BHE, mask_BH)
        return users_BE
