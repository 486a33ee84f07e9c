"""Parameters of a model in closed form, if its backbone is a new one of given sizes.

The backbone of ``random`` is BERT's: per layer four D x D projections, two feed-forward matrices D
x F, two norms; embeddings of V tokens, P positions and 2 segments. Other backbones are measured by
:mod:`trainer.plan.meta`. Legend: V vocabulary, D width, F feed-forward width, E news width, Q query
width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config.clicks import ClickConfig
from trainer.config.parts import part_of
from trainer.config.schema import BackboneConfig, ModelConfig, TrainConfig
from trainer.tasks.registry import task_of

if TYPE_CHECKING:
    from torch import nn

    from trainer.models.poolings import Pooling

RELATIVE_BUCKETS = 32


@dataclass(frozen=True, kw_only=True)
class BackboneSize:
    """Sizes and parameters of a language model."""

    layers: int
    """Number of kept layers."""
    width: int
    """Width, D."""
    heads: int
    """Attention heads."""
    inner: int
    """Width of the feed-forward part, F."""
    layer_parameters: int
    """Parameters of one layer."""
    other_parameters: int
    """Parameters outside the layers, such as embeddings."""
    largest: int
    """Elements of the largest tensor."""

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.layers * self.layer_parameters + self.other_parameters


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """Parameters that a task holds and trains."""

    backbone: BackboneSize
    """Sizes of the language model."""
    model: int
    """Parameters of the exported model: news encoder, and in click tasks the user encoder."""
    projections: int
    """Parameters of the projections of teacher vectors, which are trained with the model."""
    trained_layers: int
    """Number of trained top layers of the backbone."""
    trains_embeddings: bool
    """Whether embeddings are trained, too: then every layer is trained."""
    news_dim: int
    """News width E; 0 without a news encoder."""
    query_dim: int
    """Query width Q; 0 without a news encoder."""

    @property
    def parameters(self) -> int:
        """All parameters of the task."""
        return self.model + self.projections

    @property
    def trained_backbone(self) -> int:
        """Trained parameters of the backbone: the first optimizer group."""
        trained = self.trained_layers * self.backbone.layer_parameters
        return trained + (self.backbone.other_parameters if self.trains_embeddings else 0)

    @property
    def trained(self) -> int:
        """Trained parameters, which have gradients and moments."""
        return self.parameters - self.backbone.parameters + self.trained_backbone


def bert_size(backbone: BackboneConfig, vocab_size: int) -> BackboneSize:
    """Return the sizes of a ``random`` backbone (BERT without its pooler).

    Args:
        backbone: Section of the configuration.
        vocab_size: Entries of the tokenizer.
    """
    D, F = backbone.hidden_size, backbone.intermediate_size
    layer = 4 * (D * D + D) + (D * F + F) + (F * D + D) + 4 * D
    embeddings = (vocab_size + backbone.max_positions + 2) * D + 2 * D
    bias = RELATIVE_BUCKETS * backbone.num_heads if backbone.relative_position_bias else 0
    return BackboneSize(
        layers=backbone.num_layers if backbone.layers is None else len(backbone.layers),
        width=D,
        heads=backbone.num_heads,
        inner=F,
        layer_parameters=layer,
        other_parameters=embeddings + bias,
        largest=max(vocab_size * D, backbone.max_positions * D, D * F),
    )


def task_size(
    config: TrainConfig, backbone: BackboneSize, teacher_dims: Sequence[int] = ()
) -> TaskSize:
    """Return the parameters of a run's whole task around a backbone.

    Args:
        config: The run.
        backbone: Sizes of its language model.
        teacher_dims: Width of each teacher's vectors; empty without teachers.
    """
    model, head, E, Q = config.model, 0, 0, 0
    if isinstance(model, ModelConfig):
        E, Q = model.news_dim, model.query_dim
        pooling: Pooling = part_of(model, "pooling")
        head = backbone.width * E + E + _count(lambda: [pooling.build(backbone.width, Q)])
    if isinstance(config, ClickConfig):
        user = config.user_encoder
        head += E + _count(lambda: user.layers(E, Q).values())  # E: a user without clicks
    trained = model.trainable_layers
    return TaskSize(
        backbone=backbone,
        model=backbone.parameters + head,
        projections=task_of(config).beside(config, teacher_dims),
        trained_layers=backbone.layers if trained is None else min(trained, backbone.layers),
        trains_embeddings=trained is None,
        news_dim=E,
        query_dim=Q,
    )


def _count(layers: Callable[[], Iterable[nn.Module]]) -> int:
    """Count the parameters of layers, without allocating them."""
    import torch

    with torch.device("meta"):
        return sum(p.numel() for layer in layers() for p in layer.parameters())
