"""What a user encoder says about itself. No torch at import: its layers import torch when they are
made."""

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

    Empty history slots are settled before it (:class:`trainer.models.user_model.UserModel`): at
    least one slot a user counts.
    """

    def clicks_read(self, history_length: int) -> int:
        """Count the most recent clicks that are read of ``data.history_length``."""
        return history_length

    def check(self, news_dim: int, history_length: int | None = None) -> None:
        """Refuse settings that do not fit the width or the history.

        Args:
            news_dim: E, width of news and user vectors.
            history_length: Clicks that are read of a user; None where that is not known.

        Raises:
            ConfigError: Naming the settings by their dotted names.
        """

    @abstractmethod
    def layers(self, news_dim: int, query_dim: int) -> Mapping[str, nn.Module]:
        """Make the layers, by the names that they have in the export's weights.

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
            layers: As :meth:`layers` made them, with the weights of now.
            history_BHE: ``[B, H, E]`` vectors of clicked articles, the oldest first.
            mask_BH: bool ``[B, H]``, True in slots that count; at least one a row.

        Returns:
            ``[B, E]``, fp32 or wider.
        """
