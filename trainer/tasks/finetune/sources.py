"""Click log of a run, opened together with its articles.

This module does not import torch.
"""

from dataclasses import dataclass

from shards.clicks import ClickColumn
from shards.reader import ShardSet
from trainer.config.clicks import ClickConfig
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.tasks.finetune.left_out import clicks_left_out
from trainer.tasks.left_out import LeftOut
from trainer.tasks.sources import Sources, cache_settings, check_kind, open_articles


@dataclass(frozen=True)
class ClickSources(Sources):
    """Opened data of a run over clicks."""

    impressions: ShardSet
    clicks: ClickColumn
    config: ClickConfig

    @property
    def ordered(self) -> ShardSet:
        """See :attr:`Sources.ordered`."""
        return self.impressions

    @property
    def num_units(self) -> int:
        """See :attr:`Sources.num_units`."""
        return self.clicks.num_clicks - len(self.left_out().units)

    def left_out(self) -> LeftOut:
        """Return the clicks that are left out, and why."""
        return clicks_left_out(self.clicks, self.tokens.skipped_rows, self.config.data)


def open_clicks(config: ClickConfig) -> ClickSources:
    """Open a run's articles, their tokens, and its click log.

    Raises:
        DataError: A set is missing or of the wrong kind, or its clicks refer to other articles.
        ColumnError: A column is missing or does not match.
    """
    found = open_articles(config)
    assert config.data.clicks is not None, "checked with the configuration"
    impressions = open_impressions(config, config.data.clicks, found.articles, "data.clicks")
    clicks = ClickColumn.open(impressions, found.articles.num_rows)
    return ClickSources(found.articles, found.tokens, impressions, clicks, config)


def open_impressions(
    config: TrainConfig, location: str, articles: ShardSet, setting: str
) -> ShardSet:
    """Open an impression set over a run's articles.

    Args:
        config: The run, for its settings of sets at a URL.
        location: Folder or URL of the set.
        articles: The run's article set.
        setting: Setting that names the set, for messages.

    Raises:
        DataError: The set is missing.
        ConfigError: The set does not hold impressions, or was built over other articles.
    """
    impressions = ShardSet.open(
        location, cache=cache_settings(config), check_columns=config.data.check_columns
    )
    check_kind(impressions, "impressions", setting)
    if impressions.manifest.articles_fingerprint != articles.fingerprint:
        raise ConfigError(
            f"{setting} {impressions.path} was built over other articles "
            f"({str(impressions.manifest.articles_fingerprint)[:12]}…) than data.articles "
            f"{articles.path} ({articles.fingerprint[:12]}…); build it again: tnr shards build "
            f"--clicks LOG --article-set {articles.path} --out {impressions.path}"
        )
    return impressions
