"""Opened shard sets and columns of a run, for counts and checks.

This module does not import torch.
"""

from dataclasses import dataclass

import numpy as np

from shards.cache import GIB, CacheSettings
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.remote import Patience
from shards.tokens import TokenColumn
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Sources:
    """Opened data of a run; cheap to open, and enough for a dry run."""

    articles: ShardSet
    tokens: TokenColumn

    @property
    def ordered(self) -> ShardSet:
        """Set whose shards determine the order of an epoch."""
        return self.articles

    @property
    def num_units(self) -> int:
        """Units of an epoch, without those that are damaged or left out of the run."""
        return self.articles.num_rows - len(self.tokens.skipped_rows)


def open_articles(config: TrainConfig) -> Sources:
    """Open the article set of a run and its tokens.

    Raises:
        DataError: The set is missing.
        ConfigError: The set does not hold articles.
        ColumnError: The column is missing or does not match.
    """
    data = config.data
    # Training reads only columns, and these are bound to the original shards.
    articles = ShardSet.open(
        data.articles,
        cache=cache_settings(config),
        check_files=False,
        check_columns=data.check_columns,
    )
    check_kind(articles, "articles", "data.articles")
    return Sources(articles, TokenColumn.open(articles, data.tokens))


def article_order(
    config: TrainConfig, sources: Sources, left_out: np.ndarray | None = None
) -> EpochOrder:
    """Make the order in which a run reads articles.

    Args:
        config: The run.
        sources: Data of the run.
        left_out: Articles to leave out, int64[k]; None leaves out the damaged ones.

    Raises:
        DataError: No articles are left.
    """
    articles = sources.articles
    skipped = sources.tokens.skipped_rows if left_out is None else left_out
    counts = np.diff(articles.shard_starts).tolist()
    return EpochOrder(
        counts, articles.fingerprint, config.run.seed, config.data.window_shards, skipped
    )


def cache_settings(config: TrainConfig) -> CacheSettings:
    """Return the cache settings of a run for sets at a URL."""
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    return CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)


def check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    """Refuse a set of another kind.

    Raises:
        ConfigError: The kind differs; names the setting and both kinds.
    """
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")
