"""Models small enough for a test: 4 layers of width 32, a vocabulary of 100."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.config.schema import BackboneConfig, ModelConfig

VOCAB_SIZE = 100
PAD_ID = 0


def tiny_backbone(**changes: Any) -> BackboneConfig:
    """A random backbone without dropout, with changes by field."""
    sizes = BackboneConfig(
        num_layers=4,
        hidden_size=32,
        num_heads=4,
        intermediate_size=48,
        max_positions=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return replace(sizes, **changes)


def tiny_model(backbone: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """A small model section, with changes by field."""
    model = ModelConfig(
        backbone=tiny_backbone(**(backbone or {})), query_dim=8, news_dim=16, user_heads=4
    )
    return replace(model, **changes)


def texts(lengths: list[int], padded_to: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask; the same text whatever it is padded to."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), padded_to), PAD_ID)
    mask = torch.zeros(len(lengths), padded_to, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCAB_SIZE, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask
