"""Opening an article set and a click log that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.clicks import ClickColumn
from shards.reader import ShardSet
from trainer.errors import DataError


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

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels uint8[K] of all candidates and offsets int64[n+1].

        Raises:
            DataError: The log has no labels.
        """
        if not self.impressions.manifest.labelled:
            raise DataError(
                f"{self.impressions.path} has no labels, so nothing can be measured on it; "
                "'tnr predict' writes its prediction file"
            )
        rows = np.arange(self.clicks.num_impressions, dtype=np.int64)
        _, offsets = self.clicks.candidates(rows)
        return np.asarray(self.clicks.clicked(rows)), offsets

    def used_articles(self, history_length: int) -> np.ndarray:
        """Sorted article rows that a candidate list or the read part of a history names, int64."""
        rows = np.arange(self.clicks.num_impressions, dtype=np.int64)
        used = np.zeros(self.articles.num_rows, dtype=bool)
        used[self.clicks.candidates(rows)[0]] = True
        for start in range(0, len(rows), 65536):  # keeps the padded histories small
            history, mask = self.clicks.history(rows[start : start + 65536], history_length)
            used[history[mask.astype(bool)]] = True
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
    return ClickLog(article_set, impression_set, ClickColumn.open(impression_set))
