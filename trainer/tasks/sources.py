"""The shard sets and columns of a run, opened: enough to count, to look, and to check. No torch."""

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
    """The opened data of a run; cheap to open, and enough for a dry run."""

    articles: ShardSet
    tokens: TokenColumn

    @property
    def ordered(self) -> ShardSet:
        """The set whose shards the order of an epoch goes through."""
        return self.articles

    @property
    def num_units(self) -> int:
        """Units of an epoch, without those that are damaged or left out of the run."""
        return self.articles.num_rows - len(self.tokens.skipped_rows)


def open_articles(config: TrainConfig) -> Sources:
    """Open the article set of a run and its tokens.

    Raises:
        DataError: The set is missing.
        ConfigError: It holds no articles.
        ColumnError: The column is missing or does not match.
    """
    data = config.data
    # Training reads columns alone, and these are tied to the shards as they were.
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
        sources: Its data.
        left_out: Articles that never come, int64[k]; None are the damaged ones.

    Raises:
        DataError: No article is left.
    """
    articles = sources.articles
    skipped = sources.tokens.skipped_rows if left_out is None else left_out
    counts = np.diff(articles.shard_starts).tolist()
    return EpochOrder(
        counts, articles.fingerprint, config.run.seed, config.data.window_shards, skipped
    )


def cache_settings(config: TrainConfig) -> CacheSettings:
    """Say how a run keeps what it reads of sets at a URL."""
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    return CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)


def check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    """Refuse a set of another kind.

    Raises:
        ConfigError: Naming the setting, and both kinds.
    """
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")
