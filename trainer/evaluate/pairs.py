"""An article set and a click log that belong together, opened and iterated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.clicks import ClickColumn
from shards.reader import ShardSet
from trainer.errors import DataError

_ROWS = 16384
"""Impressions per part, which are in memory at a time."""


class LogPart(NamedTuple):
    """Candidates of some consecutive impressions."""

    rows: np.ndarray
    """int64[B] impressions."""
    candidates: np.ndarray
    """int64[K] article rows."""
    offsets: np.ndarray
    """int64[B+1]."""


def log_parts(clicks: ClickColumn, rows: np.ndarray | None = None) -> Iterator[LogPart]:
    """Yield the impressions of a log in parts: the given rows, int64[n], or all."""
    if rows is None:
        rows = np.arange(clicks.num_impressions, dtype=np.int64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield LogPart(part, *clicks.candidates(part))


class TrainingLog(NamedTuple):
    """Impressions of the training data: those of a log, or of a period of it."""

    clicks: ClickColumn
    rows: np.ndarray
    """int64[n]."""

    def parts(self) -> Iterator[LogPart]:
        """Yield these impressions in parts."""
        return log_parts(self.clicks, self.rows)


@dataclass(frozen=True)
class ClickLog:
    """An impression set, its click column, and the article set that its row numbers refer to."""

    articles: ShardSet
    impressions: ShardSet
    clicks: ClickColumn

    def describe(self) -> dict[str, Any]:
        """Return names and fingerprints of both sets, for the record of an evaluation."""
        return {
            "articles": str(self.articles.path),
            "articles_fingerprint": self.articles.fingerprint,
            "impressions": str(self.impressions.path),
            "impressions_fingerprint": self.impressions.fingerprint,
        }

    def rows(self) -> np.ndarray:
        """Return all impressions, int64[n]."""
        return np.arange(self.clicks.num_impressions, dtype=np.int64)

    def check_labelled(self) -> None:
        """Check that the log has labels.

        Raises:
            DataError: The log has no labels.
        """
        if not self.impressions.manifest.labelled:
            raise DataError(
                f"{self.impressions.path} has no labels to measure on; 'tnr "
                "predict' writes its prediction file"
            )

    def ids(self) -> Iterator[str]:
        """Yield the ids of the impressions, in the order of the log.

        Raises:
            DamageError: A sample's bytes differ from those that were written.
        """
        return (str(sample["id"]) for sample in self.impressions)

    def used_articles(self, history_length: int) -> np.ndarray:
        """Return the sorted rows of articles among candidates or in the read part of histories."""
        used = np.zeros(self.articles.num_rows, dtype=bool)
        for part in log_parts(self.clicks):
            used[part.candidates] = True
            read, _ = self.clicks.reader.gather_ragged("history", part.rows, last=history_length)
            used[read] = True
        return np.flatnonzero(used)


def open_click_log(articles: str | Path, impressions: str | Path) -> ClickLog:
    """Open both sets and check that the impressions refer to this article set.

    Raises:
        DataError: A set is missing, of the wrong kind, or the two do not belong together.
    """
    # Only columns are read, and these are bound to the original shards.
    article_set = ShardSet.open(articles, kind="articles", check_files=False)
    impression_set = ShardSet.open(impressions, kind="impressions", check_files=False)
    wanted = impression_set.manifest.articles_fingerprint
    if wanted != article_set.fingerprint:
        raise DataError(
            f"{impression_set.path} refers to articles {str(wanted)[:12]}…, but "
            f"{article_set.path} is {article_set.fingerprint[:12]}…; name the article set it was "
            "built with, or build the clicks again"
        )
    clicks = ClickColumn.open(impression_set, article_set.num_rows)
    return ClickLog(article_set, impression_set, clicks)
