"""Additive attention over the history, the paper's user encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.models.user_encoders.base import UserEncoder

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Additive(UserEncoder):
    """Additive attention over the history."""

    fixed = ("query_dim",)

    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        """See :meth:`UserEncoder.layers`."""
        from trainer.models.pooling import AttentionPooling

        return {"pooling": AttentionPooling(news_dim, query_dim)}

    def pool(self, layers: Mapping[str, nn.Module], history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """See :meth:`UserEncoder.pool`."""
        users_BE: Tensor = layers["pooling"](history_BHE, mask_BH)
        return users_BE
