"""Opening an article set and a click log that belong together, and going through the log."""

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
"""Impressions of a part: what is in memory at a time."""


class LogPart(NamedTuple):
    """What some consecutive impressions showed."""

    rows: np.ndarray
    """int64[B] impressions."""
    candidates: np.ndarray
    """int64[K] article rows."""
    offsets: np.ndarray
    """int64[B+1]."""


def log_parts(clicks: ClickColumn, rows: np.ndarray | None = None) -> Iterator[LogPart]:
    """Go through the impressions of a log, these (int64[n]) or all; without any there is no
    part."""
    if rows is None:
        rows = np.arange(clicks.num_impressions, dtype=np.int64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield LogPart(part, *clicks.candidates(part))


class TrainingLog(NamedTuple):
    """The impressions that models were trained on: those of a log, or of a period of it."""

    clicks: ClickColumn
    rows: np.ndarray
    """int64[n]."""

    def parts(self) -> Iterator[LogPart]:
        """Go through these impressions."""
        return log_parts(self.clicks, self.rows)


@dataclass(frozen=True)
class ClickLog:
    """An impression set, its click column, and the article set that its row numbers refer to."""

    articles: ShardSet
    impressions: ShardSet
    clicks: ClickColumn

    def describe(self) -> dict[str, Any]:
        """Names and fingerprints of both sets, for the record of an evaluation."""
        return {
            "articles": str(self.articles.path),
            "articles_fingerprint": self.articles.fingerprint,
            "impressions": str(self.impressions.path),
            "impressions_fingerprint": self.impressions.fingerprint,
        }

    def rows(self) -> np.ndarray:
        """All impressions, int64[n]."""
        return np.arange(self.clicks.num_impressions, dtype=np.int64)

    def check_labelled(self) -> None:
        """Check that the log says what was clicked.

        Raises:
            DataError: It does not.
        """
        if not self.impressions.manifest.labelled:
            raise DataError(
                f"{self.impressions.path} has no labels, so nothing can be measured on it; "
                "'tnr predict' writes its prediction file"
            )

    def ids(self) -> Iterator[str]:
        """Ids of the impressions in the order of the log, read from the shards one by one.

        Raises:
            DamageError: A sample's bytes are not the ones that were written.
        """
        return (str(sample["id"]) for sample in self.impressions)

    def used_articles(self, history_length: int) -> np.ndarray:
        """Sorted article rows that a candidate list or the read part of a history names, int64."""
        used = np.zeros(self.articles.num_rows, dtype=bool)
        for part in log_parts(self.clicks):
            used[part.candidates] = True
            read, _ = self.clicks.reader.gather_ragged("history", part.rows, last=history_length)
            used[read] = True
        return np.flatnonzero(used)


def open_click_log(articles: str | Path, impressions: str | Path) -> ClickLog:
    """Open both sets and check that the impressions refer to this very article set.

    Raises:
        DataError: A set is missing, of the wrong kind, or the two do not belong together.
    """
    # Columns alone are read, and these are tied to the shards as they were.
    article_set = ShardSet.open(articles, kind="articles", check_files=False)
    impression_set = ShardSet.open(impressions, kind="impressions", check_files=False)
    wanted = impression_set.manifest.articles_fingerprint
    if wanted != article_set.fingerprint:
        raise DataError(
            f"{impression_set.path} refers to articles {str(wanted)[:12]}…, but {article_set.path} "
            f"is {article_set.fingerprint[:12]}…; name the article set it was built with, or build "
            "the clicks again"
        )
    clicks = ClickColumn.open(impression_set, article_set.num_rows)
    return ClickLog(article_set, impression_set, clicks)
