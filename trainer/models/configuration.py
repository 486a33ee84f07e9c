"""Configurations of the exported models: what ``config.json`` of an export holds.

The whole configuration of the language model is nested inside, so that loading an export needs
neither the network nor the folder that the model was once made from.
"""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from trainer.errors import ModelError

POOLINGS = ("attention", "mean", "cls")
USER_ENCODERS = ("additive", "nrms", "last_k_mean")
HISTORY_PADDINGS = ("mask", "learned")


class NewsEncoderConfig(PreTrainedConfig):
    """Language model, pooling and projection of a news encoder.

    Attributes:
        backbone: Configuration of the language model (any encoder of transformers).
        pooling: ``attention``, ``mean`` or ``cls``.
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
            ModelError: A value is not one that this version knows.
        """
        self.backbone = _own_copy(self.backbone)
        super().__post_init__(**kwargs)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_positive(self, "query_dim", "news_dim")

    @property
    def language_model(self) -> PreTrainedConfig:
        """The nested configuration as an object, which it always is once initialised."""
        nested = self.backbone
        if not isinstance(nested, PreTrainedConfig):
            raise ModelError(f"backbone is {type(nested).__name__}, not a configuration")
        return nested

    def to_diff_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds: everything, since another version may have other defaults."""
        return _without_paths(self.to_dict())


class RecommenderConfig(PreTrainedConfig):
    """A news encoder and the user encoder on top of it.

    Attributes:
        news_encoder: Configuration of the news encoder.
        user_encoder: ``additive`` (the paper's), ``nrms`` or ``last_k_mean``.
        user_heads: Self-attention heads of ``nrms``.
        user_last_k: Most recent clicks that ``last_k_mean`` takes the mean of.
        query_dim: Width of the queries of additive attention over the history.
        history_padding: ``mask`` or ``learned``, see
            :class:`trainer.models.user_encoder.UserEncoder`.
    """

    model_type = "tnr-recommender"
    sub_configs_defaults = {  # noqa: RUF012
        "news_encoder": SubConfigSpec(config_class=NewsEncoderConfig)
    }

    news_encoder: NewsEncoderConfig | dict | None = None
    user_encoder: str = "additive"
    user_heads: int = 16
    user_last_k: int = 10
    query_dim: int = 200
    history_padding: str = "mask"

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the nested configuration and check the values.

        Raises:
            ModelError: A value is not one that this version knows, or the heads do not divide the
                width.
        """
        self.news_encoder = _own_copy(self.news_encoder)
        super().__post_init__(**kwargs)
        _check_choice("user_encoder", self.user_encoder, USER_ENCODERS)
        _check_choice("history_padding", self.history_padding, HISTORY_PADDINGS)
        _check_positive(self, "user_heads", "user_last_k", "query_dim")
        if self.user_encoder == "nrms" and self.news_dim % self.user_heads:
            raise ModelError(
                f"news_dim {self.news_dim} is not a multiple of user_heads {self.user_heads}: "
                "each self-attention head of the NRMS user encoder is news_dim / user_heads wide"
            )

    @property
    def news_config(self) -> NewsEncoderConfig:
        """The nested configuration as an object, which it always is once initialised."""
        nested = self.news_encoder
        if not isinstance(nested, NewsEncoderConfig):
            raise ModelError(f"news_encoder is {type(nested).__name__}, not a configuration")
        return nested

    @property
    def news_dim(self) -> int:
        """Width of news and user vectors."""
        return self.news_config.news_dim

    def to_diff_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds: everything, since another version may have other defaults."""
        return _without_paths(self.to_dict())


def _own_copy(nested: Any) -> Any:
    """A copy: transformers resets nested configurations, and a live model's must stay."""
    return copy.deepcopy(nested)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Without the folders that the parts came from, which mean nothing on another machine."""
    return {
        key: _without_paths(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "_name_or_path"
    }


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{field} is {value!r}; known are {', '.join(known)}")


def _check_positive(config: PreTrainedConfig, *fields: str) -> None:
    for field in fields:
        if getattr(config, field) < 1:
            raise ModelError(f"{field} is {getattr(config, field)}; it must be 1 or more")
