"""The shard sets and columns of a run, opened: enough to count, to look, and to check. No torch."""

from dataclasses import dataclass

from shards.cache import GIB, CacheSettings
from shards.clicks import ClickColumn
from shards.reader import ShardSet
from shards.remote import Patience
from shards.tokens import TokenColumn
from trainer.config.schema import DataConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.tasks.left_out import clicks_left_out


@dataclass(frozen=True)
class Sources:
    """The opened data of a run; cheap to open, and enough for a dry run."""

    articles: ShardSet
    tokens: TokenColumn
    impressions: ShardSet | None
    clicks: ClickColumn | None
    data: DataConfig

    @property
    def num_units(self) -> int:
        """Units of an epoch: articles, or clicks, without those that are damaged or outside the
        run's period."""
        skipped = self.tokens.skipped_rows
        if self.clicks is None:
            return self.articles.num_rows - len(skipped)
        return self.clicks.num_clicks - len(clicks_left_out(self.clicks, skipped, self.data).units)


def open_sources(config: TrainConfig) -> Sources:
    """Open the shard sets and columns that a run reads.

    Raises:
        DataError: A set is missing or of the wrong kind, or clicks refer to other articles.
        ColumnError: A column is missing or does not match.
    """
    data = config.data
    # Training reads columns alone, and these are tied to the shards as they were.
    articles = ShardSet.open(data.articles, cache=_cache(config), check_files=False)
    _check_kind(articles, "articles", "data.articles")
    tokens = TokenColumn.open(articles, config.data.tokens)
    if config.data.clicks is None or config.task.startswith("post_train"):
        return Sources(articles, tokens, None, None, data)
    impressions = open_impressions(config, config.data.clicks, articles, "data.clicks")
    return Sources(articles, tokens, impressions, ClickColumn.open(impressions), data)


def open_impressions(
    config: TrainConfig, location: str, articles: ShardSet, setting: str
) -> ShardSet:
    """Open an impression set over a run's articles.

    Args:
        config: The run, for how sets at a URL are read.
        location: Folder or URL of the set.
        articles: The run's article set.
        setting: What names the set, for messages.

    Raises:
        DataError: The set is missing.
        ConfigError: It holds no impressions, or was built over other articles.
    """
    impressions = ShardSet.open(location, cache=_cache(config))
    _check_kind(impressions, "impressions", setting)
    if impressions.manifest.articles_fingerprint != articles.fingerprint:
        raise ConfigError(
            f"{setting} {impressions.path} was built over other articles "
            f"({str(impressions.manifest.articles_fingerprint)[:12]}…) than data.articles "
            f"{articles.path} ({articles.fingerprint[:12]}…); build it again: tnr shards build "
            f"--clicks LOG --article-set {articles.path} --out {impressions.path}"
        )
    return impressions


def _cache(config: TrainConfig) -> CacheSettings:
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    return CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)


def _check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")
