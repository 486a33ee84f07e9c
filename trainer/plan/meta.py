"""Sizes of any backbone, measured on torch's meta device: shapes without memory."""

from typing import Any

from shards.pretrained import on_meta
from trainer.config.schema import LanguageModelConfig
from trainer.models.layers import find_layers, new_language_model, select_layers
from trainer.models.loading import load_language_model_config, load_news_config
from trainer.plan.sizes import RELATIVE_BUCKETS, BackboneSize

_INNER = ("intermediate_size", "hidden_dim", "ffn_dim")


def backbone_size(config: LanguageModelConfig) -> BackboneSize:
    """Return the sizes of a run's initial backbone, from an export or a language model.

    Args:
        config: The run's model section; only configurations are read, no weights.

    Raises:
        ModelError: The model does not exist on this machine, or its layers cannot be identified.
    """
    if config.init is not None:
        lm_config = load_news_config(config.init).language_model
    else:
        lm_config = load_language_model_config(config.backbone.name)
    with on_meta():
        model: Any = new_language_model(lm_config)
    if config.backbone.layers is not None:
        select_layers(model, config.backbone.layers)
    layers = list(find_layers(model)[1])
    each = sum(p.numel() for p in layers[-1].parameters())
    sizes = [p.numel() for p in model.parameters()]
    heads = int(getattr(lm_config, "num_attention_heads", 1))  # FNet mixes without attention
    bias = RELATIVE_BUCKETS * heads if config.backbone.relative_position_bias else 0
    inner = next((getattr(lm_config, n) for n in _INNER if hasattr(lm_config, n)), None)
    return BackboneSize(
        layers=len(layers),
        width=int(lm_config.hidden_size),
        heads=heads,
        inner=int(inner or 4 * lm_config.hidden_size),
        layer_parameters=each,
        other_parameters=sum(sizes) - each * len(layers) + bias,
        largest=max(sizes),
    )
