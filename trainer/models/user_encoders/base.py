"""Interface of user encoders.

This module does not import torch: the layers import it when they are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config.parts import Part

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class UserEncoder(Part, ABC):
    """How clicked articles become a user; its fields are settings of the model section.

    Empty history slots are handled earlier (:class:`trainer.models.user_model.UserModel`): at least
    one slot per user counts.
    """

    def clicks_read(self, history_length: int) -> int:
        """Return how many most recent clicks are read of ``data.history_length``."""
        return history_length

    def check(self, news_dim: int, history_length: int | None = None) -> None:
        """Refuse settings that contradict the width or the history length.

        Args:
            news_dim: E, width of news and user vectors.
            history_length: Clicks that are read per user; None if unknown.

        Raises:
            ConfigError: Settings contradict each other; names them by their dotted names.
        """

    @abstractmethod
    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        """Make the layers, by their names in the export's weights.

        Layers start with torch's own values, ``nn.Linear`` with those of the rest of the model; set
        a raw ``nn.Parameter`` to its first value here. Layers are also made on torch's meta device
        (for plans and exports), where a value cannot be read. Buffers must be persistent. A layer
        has one name.

        Args:
            news_dim: E, width of news and user vectors.
            query_dim: ``model.query_dim``.
        """

    @abstractmethod
    def pool(self, layers: Mapping[str, nn.Module], history_BHE: Tensor, mask_BH: Tensor) -> Tensor:
        """Encode users.

        Args:
            layers: Layers from :meth:`layers`, with their current weights.
            history_BHE: ``[B, H, E]`` vectors of clicked articles, the oldest first.
            mask_BH: bool ``[B, H]``, True in slots that count; at least one per row.

        Returns:
            ``[B, E]``, fp32 or wider.
        """
