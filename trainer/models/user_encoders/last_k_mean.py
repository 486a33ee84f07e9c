"""Mean of the last clicked articles: a baseline that learns only ``pad_doc``."""

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
class LastKMean(UserEncoder):
    """Mean of the most recent clicks."""

    user_last_k: Count = 10
    """Number of most recent clicks that ``last_k_mean`` averages, at most ``data.history_length``.
    Earlier clicks are neither read nor encoded."""

    def clicks_read(self, history_length: int) -> int:
        """See :meth:`UserEncoder.clicks_read`."""
        return min(self.user_last_k, history_length)

    def check(self, news_dim: int, history_length: int | None = None) -> None:
        """See :meth:`UserEncoder.check`."""
        if history_length is not None and self.user_last_k > history_length:
            raise ConfigError(
                f"model.user_last_k {self.user_last_k} is more than data.history_length "
                f"{history_length}, the number of clicks that are read: raise data.history_length "
                "or lower model.user_last_k"
            )

    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        """See :meth:`UserEncoder.layers`."""
        from trainer.models.pooling import MeanPooling

        return {"pooling": MeanPooling()}

    def pool(self, layers: Mapping[str, nn.Module], history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """See :meth:`UserEncoder.pool`."""
        from_end_BH = mask_BH.flip(1).cumsum(dim=1).flip(1)  # 1 in the last slot that counts
        users_BE: Tensor = layers["pooling"](
            history_BHE, mask_BH & (from_end_BH <= self.user_last_k)
        )
        return users_BE
