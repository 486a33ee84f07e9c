"""Models of a run, new or from an export, matched to the texts that they will read."""

from shards.tokens import TokenColumn
from trainer.config.clicks import ClickConfig
from trainer.config.schema import EncoderConfig
from trainer.config.validate import check_positions
from trainer.models.build import build_news_encoder, build_recommender
from trainer.models.news_encoder import NewsEncoder
from trainer.models.probe import freeze_idle
from trainer.models.recommender import Recommender


def new_encoder(config: EncoderConfig, tokens: TokenColumn) -> tuple[NewsEncoder, list[str]]:
    """Make the news encoder of a run, and lines to print about it.

    Raises:
        ModelError: The encoder cannot be loaded, or does not match the tokens.
        ConfigError: The texts are longer than the encoder reads.
    """
    sizes = {"vocab_size": tokens.vocab_size, "pad_id": tokens.pad_id}
    encoder = build_news_encoder(config.model, **sizes)
    return encoder, _fitted(config, encoder, tokens)


def new_recommender(config: ClickConfig, tokens: TokenColumn) -> tuple[Recommender, list[str]]:
    """Make the recommender of a run, and lines to print about it.

    Errors are those of :func:`new_encoder`.
    """
    sizes = {"vocab_size": tokens.vocab_size, "pad_id": tokens.pad_id}
    recommender = build_recommender(config.model, **sizes)
    return recommender, _fitted(config, recommender.news_encoder, tokens)


def _fitted(config: EncoderConfig, encoder: NewsEncoder, tokens: TokenColumn) -> list[str]:
    """Check that the texts fit, and freeze unused parameters."""
    check_positions(config, encoder.backbone.max_tokens, len(tokens.prefix_ids))
    idle = freeze_idle(encoder.backbone)
    return [idle] if idle else []
