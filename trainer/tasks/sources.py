"""The shard sets and columns of a run, opened: enough to count, to look, and to check. No torch."""

from dataclasses import dataclass

from shards.cache import GIB, CacheSettings
from shards.clicks import ClickColumn
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
    impressions: ShardSet | None
    clicks: ClickColumn | None

    @property
    def num_units(self) -> int:
        """Units of an epoch: articles, or clicks, without those that damage leaves out."""
        skipped = self.tokens.skipped_rows
        if self.clicks is None:
            return self.articles.num_rows - len(skipped)
        return self.clicks.num_clicks - len(self.clicks.units_with(skipped))


def open_sources(config: TrainConfig) -> Sources:
    """Open the shard sets and columns that a run reads.

    Raises:
        DataError: A set is missing or of the wrong kind, or clicks refer to other articles.
        ColumnError: A column is missing or does not match.
    """
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    cache = CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)
    # Training reads columns alone, and these are tied to the shards as they were.
    articles = ShardSet.open(data.articles, cache=cache, check_files=False)
    _check_kind(articles, "articles", "data.articles")
    tokens = TokenColumn.open(articles, config.data.tokens)
    if config.data.clicks is None or config.task.startswith("post_train"):
        return Sources(articles, tokens, None, None)
    impressions = ShardSet.open(config.data.clicks, cache=cache)
    _check_kind(impressions, "impressions", "data.clicks")
    if impressions.manifest.articles_fingerprint != articles.fingerprint:
        raise ConfigError(
            f"data.clicks {impressions.path} was built over other articles "
            f"({str(impressions.manifest.articles_fingerprint)[:12]}…) than data.articles "
            f"{articles.path} ({articles.fingerprint[:12]}…); build it again: tnr shards build "
            f"--clicks LOG --article-set {articles.path} --out {impressions.path}"
        )
    return Sources(articles, tokens, impressions, ClickColumn.open(impressions))


def _check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")
