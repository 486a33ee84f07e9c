"""Poolings by name: how token states become one text vector.

A new pooling is a class, here or in its own file, and a line of the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config.parts import Part, Registry

if TYPE_CHECKING:
    from torch import nn

POOLINGS: Registry = {
    "attention": "trainer.models.poolings:Attention",
    "mean": "trainer.models.poolings:Mean",
    "cls": "trainer.models.poolings:FirstToken",
}


@dataclass(frozen=True, kw_only=True)
class Pooling(Part, ABC):
    """How token states become one text vector."""

    @abstractmethod
    def build(self, width: int, query_dim: int) -> nn.Module:
        """Make the module ``(states_ULD, mask_UL | None) -> vectors_UD``, fp32 or wider.

        At least one token of each row counts; None counts them all. What
        :meth:`trainer.models.user_encoders.base.UserEncoder.layers` says of layers holds here too.

        Args:
            width: D, width of the states.
            query_dim: ``model.query_dim``.
        """


@dataclass(frozen=True, kw_only=True)
class Attention(Pooling):
    """Additive attention with one learned query (the paper's)."""

    fixed = ("query_dim",)

    def build(self, width: int, query_dim: int) -> nn.Module:
        """See :meth:`Pooling.build`."""
        from trainer.models.pooling import AttentionPooling

        return AttentionPooling(width, query_dim)


@dataclass(frozen=True, kw_only=True)
class Mean(Pooling):
    """Mean of the unmasked tokens."""

    def build(self, width: int, query_dim: int) -> nn.Module:
        """See :meth:`Pooling.build`."""
        from trainer.models.pooling import MeanPooling

        return MeanPooling()


@dataclass(frozen=True, kw_only=True)
class FirstToken(Pooling):
    """State of the first token ([CLS])."""

    def build(self, width: int, query_dim: int) -> nn.Module:
        """See :meth:`Pooling.build`."""
        from trainer.models.pooling import FirstTokenPooling

        return FirstTokenPooling()
