"""Numbers of rows: counted in existing sets, or given for sets that are not built yet."""

from dataclasses import dataclass
from pathlib import Path

from shards.manifest import MANIFEST_NAME
from trainer.config.schema import TrainConfig
from trainer.tasks.finetune.sources import ClickSources
from trainer.tasks.registry import open_sources
from trainer.tasks.sources import Sources

CANDIDATES_EACH = 40
"""Candidates per impression if only impressions are given; MIND has 37 on average."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of rows of a run's data."""

    articles: int
    impressions: int = 0
    clicks: int = 0
    """Clicked candidates: the units of a click task."""
    candidates: int = 0
    """Candidates of all impressions."""
    left_out: int = 0
    """Units left out because of damage or the run's period."""

    def units(self, config: TrainConfig) -> int:
        """Return the units of an epoch."""
        rows = self.clicks if config.reads_clicks else self.articles
        return rows - self.left_out


def told(articles: int, impressions: int) -> Counts:
    """Return counts of data that do not exist yet: one click per impression."""
    return Counts(
        articles=articles,
        impressions=impressions,
        clicks=impressions,
        candidates=impressions * CANDIDATES_EACH,
    )


def open_if_there(config: TrainConfig, instead: Counts | None) -> Sources | None:
    """Open a run's data; return None if they are missing and sizes are given instead.

    Raises:
        DataError: A set is missing, and no sizes are given.
    """
    if instead is not None and not _is_there(config):
        return None
    return open_sources(config)


def counts_of(
    config: TrainConfig, sources: Sources | None, instead: Counts | None
) -> Counts | None:
    """Return the counts of opened data, or the given counts; None without either."""
    if sources is None:
        return instead
    articles = sources.articles.num_rows
    if not isinstance(sources, ClickSources):
        return Counts(articles=articles, left_out=articles - sources.num_units)
    clicks, reader = sources.clicks.num_clicks, sources.clicks.reader
    shards = range(len(sources.clicks.clicks_per_shard))
    return Counts(
        articles=articles,
        impressions=sources.impressions.num_rows,
        clicks=clicks,
        candidates=sum(int(reader.cell(s)["candidates.offsets"][-1]) for s in shards),
        left_out=clicks - sources.num_units,
    )


def _is_there(config: TrainConfig) -> bool:
    return all("://" in name or (Path(name) / MANIFEST_NAME).is_file() for name in config.locations)
