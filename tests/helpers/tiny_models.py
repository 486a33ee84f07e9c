"""Models small enough for a test: 4 layers of width 32, a vocabulary of 100."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.config.clicks import ClickModelConfig
from trainer.config.parts import with_parts
from trainer.config.schema import BackboneConfig
from trainer.tasks.finetune.task import FinetuneConfig

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


def tiny_model(backbone: dict[str, Any] | None = None, **changes: Any) -> ClickModelConfig:
    """A small model section, with changes by field; the heads of NRMS are 4."""
    if changes.get("user_encoder") == "nrms":
        changes = {"user_heads": 4} | changes
    chosen = {f"model.{name}": value for name, value in changes.items()}
    section = type(with_parts(FinetuneConfig, chosen)().model)
    sizes = {"query_dim": 8, "news_dim": 16} | changes
    return section(backbone=tiny_backbone(**(backbone or {})), **sizes)


def texts(lengths: list[int], padded_to: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids and their mask; the same text whatever it is padded to."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), padded_to), PAD_ID)
    mask = torch.zeros(len(lengths), padded_to, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCAB_SIZE, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def released_unilmv2(
    width: int = 16, heads: int = 4, inner: int = 24, layers: int = 2
) -> dict[str, Tensor]:
    """Random weights under the names of Microsoft's checkpoint of UniLMv2."""
    torch.manual_seed(0)
    shapes = {
        "bert.embeddings.word_embeddings.weight": (50, width),
        "bert.embeddings.position_embeddings.weight": (20, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        "bert.embeddings.LayerNorm.gamma": (width,),
        "bert.embeddings.LayerNorm.beta": (width,),
        "bert.encoder.rel_pos_bias.weight": (heads, 32),
        "bert.pooler.dense.weight": (width, width),
        "bert.pooler.dense.bias": (width,),
        "cls.predictions.bias": (50,),
    }
    for number in range(layers):
        layer = f"bert.encoder.layer.{number}"
        shapes |= {
            f"{layer}.attention.self.qkv_linear.weight": (3 * width, width),
            f"{layer}.attention.self.q_bias": (1, 1, width),
            f"{layer}.attention.self.v_bias": (1, 1, width),
            f"{layer}.attention.output.dense.weight": (width, width),
            f"{layer}.attention.output.dense.bias": (width,),
            f"{layer}.attention.output.LayerNorm.weight": (width,),
            f"{layer}.attention.output.LayerNorm.bias": (width,),
            f"{layer}.intermediate.dense.weight": (inner, width),
            f"{layer}.intermediate.dense.bias": (inner,),
            f"{layer}.output.dense.weight": (width, inner),
            f"{layer}.output.dense.bias": (width,),
            f"{layer}.output.LayerNorm.weight": (width,),
            f"{layer}.output.LayerNorm.bias": (width,),
        }
    return {name: torch.randn(shape) for name, shape in shapes.items()}
