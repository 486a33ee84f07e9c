"""Models from a run's configuration: initial weights, kept layers, trained parameters."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

from shards.errors import first_line
from trainer.config.bias import BIAS_KEY, settle_bias
from trainer.config.clicks import ClickModelConfig
from trainer.config.parts import part_of
from trainer.config.schema import BackboneConfig, LanguageModelConfig, ModelConfig
from trainer.errors import ModelError
from trainer.models.backbone import Backbone
from trainer.models.configuration import NewsEncoderConfig, RecommenderConfig
from trainer.models.layers import new_language_model, pooler_arguments, select_layers
from trainer.models.loading import (
    load_language_model,
    load_language_model_config,
    load_model,
    read_tensor,
)
from trainer.models.news_encoder import NewsEncoder
from trainer.models.parameters import set_trainable
from trainer.models.probe import check_padding
from trainer.models.recommender import Recommender
from trainer.models.user_encoders.base import UserEncoder
from trainer.models.user_model import UserModel

RANDOM = "random"
_HIDDEN_DROPOUTS = (
    "hidden_dropout_prob",
    "hidden_dropout",
    "dropout",
    "embedding_dropout",
    "mlp_dropout",
)
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout")


def build_news_encoder(config: ModelConfig, *, vocab_size: int, pad_id: int) -> NewsEncoder:
    """Build a news encoder for training.

    With ``config.init`` everything comes from that export (a recommender gives its news encoder),
    and ``backbone`` only selects layers and dropout. Otherwise the language model is
    ``backbone``'s, and pooling and Linear are random. The caller seeds torch before the call, and
    chooses train or eval mode after it.

    Args:
        config: The run's model section.
        vocab_size: Entries of the tokenizer that made the tokens.
        pad_id: Padding id of that tokenizer.

    Returns:
        The encoder; ``config.trainable_layers`` has been applied.

    Raises:
        ModelError: A part cannot be loaded, or does not match the tokens or the configuration.
    """
    encoder, _ = _news_encoder(config, vocab_size, pad_id)
    return encoder


def build_backbone(config: LanguageModelConfig, *, vocab_size: int, pad_id: int) -> Backbone:
    """Build a language model for training, without layers on top.

    Arguments and errors are those of :func:`build_news_encoder`.
    """
    if config.init is None:
        settled = settle_bias(config)
        language_model = _language_model(settled.backbone, vocab_size, pad_id)
        is_biased = bool(settled.backbone.relative_position_bias)
        backbone = Backbone(language_model.config, is_biased, language_model)
        _complete(backbone, settled.backbone)
    else:
        exported = load_model(config.init)
        encoder = exported.news_encoder if isinstance(exported, Recommender) else exported
        _adapt_backbone(encoder, config)
        backbone = encoder.backbone
    _check_vocabulary(backbone.language_model.config, vocab_size, pad_id, config)
    set_trainable(backbone, config.trainable_layers)
    return backbone


def build_recommender(config: ClickModelConfig, *, vocab_size: int, pad_id: int) -> Recommender:
    """Build a recommender for training: a news encoder with a user encoder.

    The news encoder is built as in :func:`build_news_encoder`. The user encoder comes from
    ``config.init`` if that is a recommender; otherwise it is random.

    Args:
        config: The run's model section.
        vocab_size: Entries of the tokenizer that made the tokens.
        pad_id: Padding id of that tokenizer.

    Returns:
        The recommender; ``config.trainable_layers`` has been applied.

    Raises:
        ModelError: A part cannot be loaded, or does not match the tokens or the configuration.
    """
    encoder, exported = _news_encoder(config, vocab_size, pad_id)
    part: UserEncoder = part_of(config, "user_encoder")
    recommender = Recommender(
        RecommenderConfig(
            news_encoder=encoder.config,
            user_encoder=config.user_encoder,
            query_dim=config.query_dim,
            history_padding=config.history_padding,
            **asdict(part),
        ),
        encoder,
    )
    _check_part(
        f"model.user_encoder {config.user_encoder}",
        recommender.user_encoder,
        lambda: UserModel(recommender.config),
    )
    if isinstance(exported, Recommender):
        _check_same(config, exported.config, ["user_encoder"])
        _check_same(config, exported.config, part.fixed, exported.config.user_part)
        recommender.user_encoder.load_state_dict(exported.user_encoder.state_dict())
    return recommender


def _news_encoder(
    config: ModelConfig, vocab_size: int, pad_id: int
) -> tuple[NewsEncoder, NewsEncoder | Recommender | None]:
    """Build the news encoder; return it with the export that it came from, if any."""
    exported = None
    if config.init is None:
        encoder = _encoder_of_backbone(config, vocab_size, pad_id)
    else:
        exported = load_model(config.init)
        encoder = exported.news_encoder if isinstance(exported, Recommender) else exported
        _adapt_exported(encoder, config)
    _check_vocabulary(encoder.config.language_model, vocab_size, pad_id, config)
    set_trainable(encoder, config.trainable_layers)
    return encoder, exported


def _encoder_of_backbone(config: ModelConfig, vocab_size: int, pad_id: int) -> NewsEncoder:
    backbone = settle_bias(config).backbone
    language_model = _language_model(backbone, vocab_size, pad_id)
    encoder = NewsEncoder(
        NewsEncoderConfig(
            backbone=language_model.config,
            pooling=config.pooling,
            pooling_mask=config.pooling_mask,
            query_dim=config.query_dim,
            news_dim=config.news_dim,
            relative_position_bias=bool(backbone.relative_position_bias),
            **asdict(part_of(config, "pooling")),
        ),
        language_model,
    )
    _complete(encoder.backbone, backbone)
    width = language_model.config.hidden_size
    _check_part(
        f"model.pooling {config.pooling}",
        encoder.pooling,
        lambda: encoder.config.pooling_part.build(width, config.query_dim),
    )
    return encoder


def _language_model(backbone: BackboneConfig, vocab_size: int, pad_id: int) -> PreTrainedModel:
    """Return the plain language model with the kept layers."""
    language_model: PreTrainedModel
    lm_config: PreTrainedConfig
    if backbone.name == RANDOM:
        lm_config = _random_config(backbone, vocab_size, pad_id)
        _override_dropout(lm_config, backbone)
        language_model = BertModel(lm_config, **pooler_arguments(lm_config))
    else:
        lm_config = load_language_model_config(backbone.name)
        _override_dropout(lm_config, backbone)
        language_model = load_language_model(backbone.name, lm_config)
    if backbone.layers is not None:
        select_layers(language_model, backbone.layers)
    return language_model


def _complete(backbone: Backbone, config: BackboneConfig) -> None:
    """Check that padding changes nothing, and load the bias table if there is one."""
    check_padding(backbone, config.name)
    table = backbone.rel_pos_bias
    if table is not None and (stored := read_tensor(Path(config.name), BIAS_KEY)) is not None:
        if stored.shape != table.weight.shape:
            raise ModelError(
                f"{BIAS_KEY} of {config.name} is {tuple(stored.shape)}; expected "
                f"{tuple(table.weight.shape)}"
            )
        with torch.no_grad():
            table.weight.copy_(stored)


def _random_config(backbone: BackboneConfig, vocab_size: int, pad_id: int) -> BertConfig:
    if backbone.hidden_size % backbone.num_heads:
        raise ModelError(
            f"backbone.hidden_size {backbone.hidden_size} is not a multiple of backbone.num_heads "
            f"{backbone.num_heads}"
        )
    return BertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        hidden_size=backbone.hidden_size,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_heads,
        intermediate_size=backbone.intermediate_size,
        max_position_embeddings=backbone.max_positions,
    )


def _adapt_exported(encoder: NewsEncoder, config: ModelConfig) -> None:
    """Apply the recipe to an exported encoder, as far as its weights allow."""
    _check_same(config, encoder.config, ["news_dim", "pooling"])
    part = encoder.config.pooling_part
    _check_same(config, encoder.config, part.fixed, part)
    encoder.config.pooling_mask = config.pooling_mask
    _adapt_backbone(encoder, config)


def _adapt_backbone(encoder: NewsEncoder, config: LanguageModelConfig) -> None:
    biased = encoder.config.relative_position_bias
    # Asking for a bias that the export lacks is an error; not asking for one that it has is not.
    if config.backbone.relative_position_bias and not biased:
        raise ModelError(
            f"backbone.relative_position_bias is true, but {config.init} was trained without it"
        )
    language_model = encoder.backbone.language_model
    if config.backbone.layers is not None:
        select_layers(language_model, config.backbone.layers)
    if _override_dropout(language_model.config, config.backbone):
        # Dropout is read when a model is built, so the same weights move into a new one.
        rebuilt = new_language_model(language_model.config)
        rebuilt.load_state_dict(language_model.state_dict())
        encoder.backbone.language_model = rebuilt
    encoder.config.backbone = encoder.backbone.language_model.config


def _override_dropout(lm_config: PreTrainedConfig, backbone: BackboneConfig) -> bool:
    """Write the recipe's dropout into a language model's configuration; return whether it did."""
    written = False
    for field, value, names in (
        ("hidden_dropout", backbone.hidden_dropout, _HIDDEN_DROPOUTS),
        ("attention_dropout", backbone.attention_dropout, _ATTENTION_DROPOUTS),
    ):
        if value is None:
            continue
        known = [name for name in names if hasattr(lm_config, name)]
        if not known:
            raise ModelError(
                f"backbone.{field} is set, but a backbone of type {lm_config.model_type!r} has no "
                "such setting; "
                f"looked for {', '.join(names)}"
            )
        for name in known:
            setattr(lm_config, name, value)
        written = True
    return written


def _check_part(choice: str, part: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Refuse a part that an export could not give back.

    Args:
        choice: The setting and its value, for messages.
        part: The part with its weights.
        make: Makes the part again.

    Raises:
        ModelError: The part cannot be exported, or cannot be made again like this.
    """
    for module in part.modules():
        for name in module._non_persistent_buffers_set:
            raise ModelError(
                f"{choice}: the buffer {name} would be missing in an export; register it with "
                "persistent=True"
            )
    names: dict[nn.Parameter, str] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(parameter, name)) != name:
            raise ModelError(
                f"{choice}: {other} and {name} are one parameter, which no export can hold; name "
                "its layer once, and use it where it is needed"
            )
    try:
        with torch.device("meta"):
            twin = make()
    except Exception as error:  # layers may raise anything
        raise ModelError(
            f"{choice} cannot be made on torch's meta device, which loading an export does first: "
            f"{first_line(error)}"
        ) from error
    shapes, again = ({k: v.shape for k, v in m.state_dict().items()} for m in (part, twin))
    if shapes != again:
        raise ModelError(f"{choice} makes other layers when it is made again: {shapes}, {again}")


def _check_same(
    config: ModelConfig, exported: Any, fields: Sequence[str], part: Any = None
) -> None:
    """Refuse settings that differ from the part's, or else from the export's."""
    for field in fields:
        asked = getattr(config, field)
        found = getattr(part, field) if hasattr(part, field) else getattr(exported, field)
        if asked != found:
            raise ModelError(
                f"model.{field} is {asked!r}, but {config.init}, from which the model starts, was "
                f"made with {found!r}: leave model.{field} out, set it to {found!r}, or start from "
                "another model"
            )


def _check_vocabulary(
    lm_config: PreTrainedConfig, vocab_size: int, pad_id: int, config: LanguageModelConfig
) -> None:
    source = config.init or config.backbone.name
    if vocab_size > lm_config.vocab_size:
        raise ModelError(
            f"the tokens come from a tokenizer with {vocab_size} entries, but {source} knows only "
            f"{lm_config.vocab_size}: tokenize the articles with the tokenizer of {source}"
        )
    padding = lm_config.pad_token_id
    if padding is not None and padding != pad_id:
        raise ModelError(
            f"the tokens are padded with id {pad_id}, but {source} with id {padding}: tokenize "
            "the articles "
            f"with the tokenizer of {source}"
        )
