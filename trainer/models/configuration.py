"""Configurations of the exported models, as in the ``config.json`` of an export.

The whole configuration of the language model is nested inside, so that loading an export needs
neither the network nor the folder from which the model was made.
"""

import copy
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from trainer.config.parts import Registry, make_part
from trainer.errors import ConfigError, ModelError
from trainer.models.poolings import POOLINGS, Pooling
from trainer.models.user_encoders import USER_ENCODERS
from trainer.models.user_encoders.base import UserEncoder

HISTORY_PADDINGS = ("mask", "learned")


class NewsEncoderConfig(PreTrainedConfig):
    """Language model, pooling and projection of a news encoder.

    Attributes:
        backbone: Configuration of the language model (any encoder of transformers).
        pooling: Name of a pooling, whose settings are further attributes.
        pooling_mask: Leave padding out of the pooling.
        query_dim: Width of the queries of attention pooling.
        news_dim: Width of a news vector.
        relative_position_bias: Add UniLMv2's relative position bias to every attention layer.
    """

    model_type = "tnr-news-encoder"
    sub_configs_defaults = {  # noqa: RUF012 (a class attribute by transformers' contract)
        "backbone": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    backbone: PreTrainedConfig | dict | None = None
    pooling: str = "attention"
    pooling_mask: bool = True
    query_dim: int = 200
    news_dim: int = 256
    relative_position_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the nested configuration and check the values.

        Raises:
            ModelError: This version does not know a value.
        """
        self.backbone = _own_copy(self.backbone)
        super().__post_init__(**kwargs)
        _check_positive(self, "query_dim", "news_dim")
        self.pooling_part  # noqa: B018  # refuses unknown values

    @property
    def language_model(self) -> PreTrainedConfig:
        """The nested configuration as an object, which it always is after initialisation."""
        nested = self.backbone
        if not isinstance(nested, PreTrainedConfig):
            raise ModelError(f"backbone is {type(nested).__name__}, not a configuration")
        return nested

    @property
    def pooling_part(self) -> Pooling:
        """The pooling that ``pooling`` names, with its settings."""
        part: Pooling = _part(self, "pooling", POOLINGS)
        return part

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all values for ``config.json``; other versions may have other defaults."""
        return _without_paths(self.to_dict())


class RecommenderConfig(PreTrainedConfig):
    """A news encoder and the user encoder on top of it.

    Attributes:
        news_encoder: Configuration of the news encoder.
        user_encoder: Name of a user encoder, whose settings are further attributes.
        query_dim: Width of the queries of additive attention over the history.
        history_padding: ``mask`` or ``learned``, see
            :class:`trainer.models.user_model.UserModel`.
    """

    model_type = "tnr-recommender"
    sub_configs_defaults = {  # noqa: RUF012
        "news_encoder": SubConfigSpec(config_class=NewsEncoderConfig)
    }

    news_encoder: NewsEncoderConfig | dict | None = None
    user_encoder: str = "additive"
    query_dim: int = 200
    history_padding: str = "mask"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the nested configuration and check the values.

        Raises:
            ModelError: This version does not know a value, or values contradict each other.
        """
        self.news_encoder = _own_copy(self.news_encoder)
        super().__post_init__(**kwargs)
        _check_choice("history_padding", self.history_padding, HISTORY_PADDINGS)
        _check_positive(self, "query_dim")
        try:
            self.user_part.check(self.news_dim)
        except ConfigError as error:
            raise ModelError(str(error)) from error

    @property
    def news_config(self) -> NewsEncoderConfig:
        """The nested configuration as an object, which it always is after initialisation."""
        nested = self.news_encoder
        if not isinstance(nested, NewsEncoderConfig):
            raise ModelError(f"news_encoder is {type(nested).__name__}, not a configuration")
        return nested

    @property
    def news_dim(self) -> int:
        """Width of news and user vectors."""
        return self.news_config.news_dim

    @property
    def user_part(self) -> UserEncoder:
        """The user encoder that ``user_encoder`` names, with its settings."""
        part: UserEncoder = _part(self, "user_encoder", USER_ENCODERS)
        return part

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all values for ``config.json``; other versions may have other defaults."""
        return _without_paths(self.to_dict())


def _own_copy(nested: Any) -> Any:
    """Return a copy: transformers resets nested configurations, and a live model's must stay."""
    return copy.deepcopy(nested)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Remove the folders of the parts, which mean nothing on another machine."""
    return {
        key: _without_paths(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }


def _part(config: PreTrainedConfig, choice: str, registry: Registry) -> Any:
    try:
        part = make_part(registry, getattr(config, choice), vars(config))
    except ConfigError as error:
        raise ModelError(f"{choice}: {error}") from error
    for field in fields(part):
        if hasattr(type(config), field.name):
            raise ModelError(
                f"{choice} {getattr(config, choice)} has the setting {field.name}, a name that "
                f"{type(config).__name__} uses otherwise: rename the setting"
            )
    return part


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{field} is {value!r}; known are {', '.join(known)}")


def _check_positive(config: PreTrainedConfig, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) < 1:
            raise ModelError(f"{field} is {getattr(config, field)}; it must be 1 or more")
