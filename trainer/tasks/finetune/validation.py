"""Validation of a click task during training: some impressions of a labelled log.

Shapes: n impressions, U articles that they name, N articles of the set, E news width.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from shards.clicks import ClickColumn
from shards.periods import (
    Period,
    check_any,
    count_unknown,
    moment,
    parse_period,
    rows_inside,
)
from shards.ragged import row_of_value
from shards.reader import ShardSet
from shards.texts import TextView
from trainer.config.clicks import ClickConfig
from trainer.engine.distributed import Distributed
from trainer.engine.validation import Measured
from trainer.errors import ConfigError, DataError
from trainer.evaluate.scoring import HistoryGroups, group_by_history
from trainer.evaluate.sharded import Ranks, encode_shared, measure
from trainer.frozen.states import StateView
from trainer.tasks.finetune.clicks import ClickData
from trainer.tasks.finetune.left_out import training_period
from trainer.tasks.finetune.sources import ClickSources, open_impressions

SECTION = "validation."
"""Prefix of the settings of the validation's period."""

_PART = 65536


@dataclass(frozen=True, kw_only=True)
class ClickValidation:
    """Impressions to validate on, read by a model as ``tnr evaluate`` reads its export.

    A run that reads its frozen layers from a column does so here as well. The vectors of articles
    are then those of the whole model up to rounding: the difference is about 1e-6 of the largest
    value from float32, and 3e-4 from float16, whose states have 11 bits (all-MiniLM-L6-v2, its top
    two layers trained). A metric differs only if that changes the order of two candidates with
    almost equal scores: by 0 and at most 2e-5 there, over 24,393 impressions.

    Attributes:
        clicks: The click log.
        rows: Rows of the impressions, int64[n] ascending; each has a clicked and another candidate.
        texts: Texts that the model reads of an article, or hidden states of its frozen layers.
        articles: Articles that the impressions name, int64[U] ascending.
        num_articles: N, articles of the whole set.
        history_length: How many of a user's most recent clicks are read.
        pad_to_max: Whether texts are padded to their longest length.
        precision: ``fp32``, or ``bf16`` for autocast.
        fingerprint: Fingerprint of the validation data; a run is continued only on the same data.
        notes: Lines to print when the run starts.
    """

    clicks: ClickColumn
    rows: np.ndarray
    texts: TextView | StateView
    articles: np.ndarray
    num_articles: int
    history_length: int
    pad_to_max: bool
    precision: str
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    def measure(
        self,
        model: Any,
        distributed: Distributed,
        *,
        on_part: Callable[[int], None],
        progress: bool = False,
    ) -> Measured:
        """Measure a model; called by all ranks.

        The model's mode and all random states stay unchanged.

        Args:
            model: The recommender, whole and the same on every rank, on this rank's device.
            distributed: The processes.
            on_part: Called whenever a part of this rank's work is done.
            progress: Show progress on standard error.

        Returns:
            MIND's metrics over the n impressions; the same on every rank.

        Raises:
            DataError: Scores are not finite.
        """
        ranks = Ranks(distributed.rank, distributed.world_size, group=distributed.control)
        device = str(distributed.device)
        vectors_UE = encode_shared(
            model,
            self.texts,
            self.articles,
            ranks,
            pad_to_max=self.pad_to_max,
            device=device,
            precision=self.precision,
            progress=progress,
            on_batch=on_part,
        )
        # Pages of articles that no impression names are never read.
        news_NE = np.zeros((self.num_articles, vectors_UE.shape[1]), dtype=np.float32)
        news_NE[self.articles] = vectors_UE
        on_part(0)
        found = measure(
            model,
            news_NE,
            self.clicks,
            ranks,
            rows=self.rows,
            groups=self._groups,
            history_length=self.history_length,
            device=device,
        )
        values, count = found.to_dict(), found.num_impressions
        return Measured(values=values, count=count, unit="impressions")

    @cached_property
    def _groups(self) -> HistoryGroups:
        """Impressions grouped by their history, sorted once for all validations of the run."""
        return group_by_history(self.clicks, self.history_length, self.rows)


def open_validation(config: ClickConfig, sources: ClickSources, data: ClickData) -> ClickValidation:
    """Open the validation of a run.

    Args:
        config: The run.
        sources: Opened data of the run.
        data: Data half of the run's task.

    Raises:
        DataError: The set is missing, has no labels, or has no impressions in the period.
        ConfigError: The set does not hold impressions, was built over other articles, or shares
            impressions with the training clicks.
    """
    settings = config.validation
    assert settings.clicks is not None
    impressions = open_impressions(config, settings.clicks, sources.articles, "validation.clicks")
    if not impressions.manifest.labelled:
        raise DataError(
            f"validation.clicks {impressions.path} has no labels to measure on; "
            "name a labelled log, such as MINDlarge_dev's"
        )
    clicks = ClickColumn.open(impressions, sources.articles.num_rows)
    period = parse_period(settings.since, settings.until, SECTION)
    inside = rows_inside(clicks, period)
    check_any(len(inside), clicks, period, SECTION, f"{clicks.num_impressions:,} impressions")
    _check_apart(config, sources, impressions, clicks, inside)
    usable = inside[_has_both(clicks, inside)]
    if not len(usable):
        raise DataError(
            f"validation.clicks {impressions.path}: none of its {len(inside):,} impressions "
            f"({period}) has both a clicked and another candidate, so no metric is defined"
        )
    rows = _evenly(usable, settings.max_impressions)
    articles = _named(clicks, rows, config.clicks_read, sources.articles.num_rows)
    digest = hashlib.sha256(impressions.fingerprint.encode() + rows.astype("<i8").tobytes())
    return ClickValidation(
        clicks=clicks,
        rows=rows,
        texts=data.states or data.news,
        articles=articles,
        num_articles=sources.articles.num_rows,
        history_length=config.clicks_read,
        pad_to_max=config.data.pad_to_max,
        precision="bf16" if config.run.precision == "bf16" else "fp32",
        fingerprint=digest.hexdigest(),
        notes=[_note(config, clicks, period, inside, usable, rows, articles)],
    )


def _note(
    config: ClickConfig,
    clicks: ClickColumn,
    period: Period,
    inside: np.ndarray,
    usable: np.ndarray,
    rows: np.ndarray,
    articles: np.ndarray,
) -> str:
    settings = config.validation
    said = (
        f"validation on {len(rows):,} of the {clicks.num_impressions:,} impressions of "
        f"{settings.clicks} ({period}{', UTC' if period.is_bounded else ''}) and the "
        f"{len(articles):,} articles that they name, every {settings.every:,} steps, by "
        f"{settings.metric}"
    )
    if period.is_bounded:
        times = clicks.time(rows)
        said += f"; they are from {moment(int(times.min()))} to {moment(int(times.max()))}"
        missing = count_unknown(clicks)
        if missing:
            said += f"; {missing:,} impressions of the log have no time, so they are in no period"
    if len(usable) < len(inside):
        said += (
            f"; {len(inside) - len(usable):,} with only clicked or only other candidates are left "
            "out"
        )
    return said


def _check_apart(
    config: ClickConfig,
    sources: ClickSources,
    impressions: ShardSet,
    clicks: ClickColumn,
    inside: np.ndarray,
) -> None:
    """Refuse to validate on training data."""
    trained = sources.impressions
    if trained is None or impressions.fingerprint != trained.fingerprint:
        return
    period = training_period(config.data)
    common = int(period.contains(clicks.time(inside)).sum())
    if common:
        raise ConfigError(
            f"validation.clicks is the training set, and {common:,} of the {len(inside):,} "
            f"impressions to validate on are trained on, too ({period}): set data.clicks_until "
            "and validation.since to the same date, or name another set"
        )


def _has_both(clicks: ClickColumn, rows: np.ndarray) -> np.ndarray:
    """Return which impressions have a clicked and another candidate, bool[n]."""
    found = [np.empty(0, dtype=bool)]
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        lengths = clicks.reader.lengths("candidates", part)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        clicked = row_of_value(offsets, np.flatnonzero(clicks.clicked(part)))
        positives = np.bincount(clicked, minlength=len(part))
        found.append((positives > 0) & (positives < lengths))
    return np.concatenate(found)


def _evenly(rows: np.ndarray, most: int | None) -> np.ndarray:
    """Return at most ``most`` rows, spread evenly over all rows."""
    if most is None or most >= len(rows):
        return rows
    return rows[np.arange(most, dtype=np.int64) * len(rows) // most]


def _named(
    clicks: ClickColumn, rows: np.ndarray, history_length: int, num_articles: int
) -> np.ndarray:
    """Return the articles among candidates or in the read part of histories, int64[U] ascending."""
    used = np.zeros(num_articles, dtype=bool)
    for start in range(0, len(rows), _PART):
        part = rows[start : start + _PART]
        used[clicks.candidates(part)[0]] = True
        used[clicks.reader.gather_ragged("history", part, last=history_length)[0]] = True
    return np.flatnonzero(used)
