"""The shard sets and columns of a run, opened: enough to count, to look, and to check. No torch."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.cache import GIB, CacheSettings
from shards.clicks import ClickColumn
from shards.negatives import Negatives
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.remote import Patience
from shards.tokens import TokenColumn
from trainer.config.load import flatten, to_dict
from trainer.config.schema import DataConfig, TrainConfig
from trainer.engine.schedule import epochs_read
from trainer.errors import ConfigError
from trainer.export.folder import load_export
from trainer.tasks.left_out import clicks_left_out
from trainer.teacher_server.kinds.logits import Logits


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
    articles = ShardSet.open(
        data.articles,
        cache=_cache(config),
        check_files=False,
        check_columns=data.check_columns,
    )
    _check_kind(articles, "articles", "data.articles")
    tokens = TokenColumn.open(articles, config.data.tokens)
    if config.data.clicks is None or config.task.startswith("post_train"):
        return Sources(articles, tokens, None, None, data)
    impressions = open_impressions(config, config.data.clicks, articles, "data.clicks")
    clicks = ClickColumn.open(impressions, articles.num_rows)
    return Sources(articles, tokens, impressions, clicks, data)


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
    impressions = ShardSet.open(
        location, cache=_cache(config), check_columns=config.data.check_columns
    )
    _check_kind(impressions, "impressions", setting)
    if impressions.manifest.articles_fingerprint != articles.fingerprint:
        raise ConfigError(
            f"{setting} {impressions.path} was built over other articles "
            f"({str(impressions.manifest.articles_fingerprint)[:12]}…) than data.articles "
            f"{articles.path} ({articles.fingerprint[:12]}…); build it again: tnr shards build "
            f"--clicks LOG --article-set {articles.path} --out {impressions.path}"
        )
    return impressions


def article_negatives(
    articles: ShardSet, tokens: TokenColumn, data: DataConfig, seed: int
) -> Negatives:
    """The order of a post-training run's articles, and their negatives.

    Raises:
        DataError: There is no article, or a window may be too small for the negatives.
    """
    counts = np.diff(articles.shard_starts).tolist()
    order = EpochOrder(counts, articles.fingerprint, seed, data.window_shards, tokens.skipped_rows)
    return Negatives(
        order, data.num_negatives, data.negatives_from, is_static=data.static_negatives
    )


def reads_vectors(config: TrainConfig) -> bool:
    """Whether a distillation needs its teachers' vectors: the embedding loss does, and so do
    logits that are not stored."""
    return config.teachers.logits == "computed" or config.loss.embedding > 0


def stored_logits(
    config: TrainConfig, sources: Sources, epochs: Sequence[int] | None = None
) -> Logits:
    """The logits that a run of stage I reads where they are stored (``teachers.logits``).

    Args:
        config: The run.
        sources: Its data.
        epochs: Of these epochs; None means those that the run reads. Negatives that are drawn once
            for all epochs (``data.static_negatives``) are those of epoch 0.

    Raises:
        ModelError: A teacher is no export.
        DataError: A window may be too small for the negatives.
    """
    articles, teachers = sources.articles, config.teachers
    negatives = article_negatives(articles, sources.tokens, config.data, config.run.seed)
    if epochs is None:
        epochs = range(epochs_read(config.run, negatives.order.num_units))
    given, defaults = (flatten(to_dict(c)) for c in (config, TrainConfig(task=config.task)))
    words: list[str] = [config.task]
    for key, value in given.items():
        # How long texts are does not matter, but would have to fit the backbone.
        decides = key.startswith(("data.", "teachers.", "run.seed")) and "max_" not in key
        if decides and value != defaults[key]:
            words += [f"--{key}", *map(str, value if isinstance(value, tuple) else [value])]
    return Logits(
        articles=articles,
        teachers=[load_export(model) for model in teachers.models],
        negatives=negatives,
        epochs=(0,) if negatives.is_static else tuple(epochs),
        dtype=teachers.dtype,
        compute=teachers.compute,
        settings=shlex.join(words),
    )


def _cache(config: TrainConfig) -> CacheSettings:
    data = config.data
    patience = Patience(attempts=data.fetch_attempts)
    return CacheSettings(data.cache_dir, int(data.cache_gib * GIB), patience)


def _check_kind(shard_set: ShardSet, kind: str, setting: str) -> None:
    if shard_set.kind != kind:
        raise ConfigError(f"{setting} {shard_set.path} holds {shard_set.kind}, expected {kind}")
