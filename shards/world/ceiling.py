"""Compute the truth about a click log: the best possible and simple rankings."""

from typing import Any

import numpy as np

from shards.world.articles import DEV, TEST, Attributes
from shards.world.clicks import Impressions
from shards.world.pools import Pool
from shards.world.streams import random_stream
from shards.world.truth import RankingSums
from shards.world.users import Users

_POPULARITY_PRIOR = 20.0
"""Number of showings by which the mean click rate counts: unshown news gets the mean, not zero."""


class ClickTruth:
    """Collects, impression by impression, the content of ``truth.json`` about the click log.

    The rankings of the dev log are: ``best`` by the log-odds from which clicks were drawn, which no
    ranking beats except by luck; ``text`` without quality, which no text reveals; ``history`` for a
    reader who knows all words but knows users only by counting in their histories (a yardstick,
    not a bound); ``popularity`` by the click rate in training; ``random``.
    """

    def __init__(
        self, users: Users, histories: np.ndarray, offsets: np.ndarray, num_articles: int
    ) -> None:
        """Start empty.

        Args:
            users: All users.
            histories: int32[K] articles.
            offsets: int64[U + 1] of the users.
            num_articles: Articles in the click log.
        """
        self._users, self._histories, self._offsets = users, histories, offsets
        self._shown = np.zeros(num_articles, dtype=np.int64)
        self._clicks = np.zeros(num_articles, dtype=np.int64)
        self._read = np.zeros(num_articles, dtype=bool)
        self._rankings = {
            name: RankingSums() for name in ("best", "text", "history", "popularity", "random")
        }
        self._counts = {
            part: {"impressions": 0, "clicks": 0, "candidates": 0, "multi": 0}
            for part in ("train", "dev")
        }
        self._cold = 0
        self._random = random_stream(users.settings, "baselines")

    def add(self, block: Impressions, *, dev: bool) -> None:
        """Count a run of impressions; all training impressions must come before the dev ones."""
        clicks = np.bincount(
            np.repeat(np.arange(len(block.users)), np.diff(block.offsets)), block.clicked
        )
        counts = self._counts["dev" if dev else "train"]
        counts["impressions"] += len(block.users)
        counts["clicks"] += int(clicks.sum())
        counts["candidates"] += len(block.candidates)
        counts["multi"] += int((clicks >= 2).sum())
        if not dev:
            size = len(self._shown)
            self._shown += np.bincount(block.candidates, minlength=size)
            self._clicks += np.bincount(block.candidates[block.clicked], minlength=size)
            for user in np.unique(block.users).tolist():
                self._read[self._histories[self._offsets[user] : self._offsets[user + 1]]] = True
            return
        self._cold += int((~(self._read | (self._shown > 0))[block.candidates]).sum())
        owners = np.repeat(np.arange(len(block.users)), np.diff(block.offsets))
        scores = {
            "best": block.propensity,
            "text": self._users.affinity(block.users[owners], block.candidates),
            "history": self._by_history(block, owners),
            "popularity": self._popularity()[block.candidates],
            "random": self._random.random(len(owners)),
        }
        for name, score in scores.items():
            self._rankings[name].add(score, block.clicked, block.offsets)

    def _popularity(self) -> np.ndarray:
        rate = self._clicks.sum() / max(self._shown.sum(), 1)
        return (self._clicks + _POPULARITY_PRIOR * rate) / (self._shown + _POPULARITY_PRIOR)

    def _by_history(self, block: Impressions, owners: np.ndarray) -> np.ndarray:
        """Return float64[K]: strengths times counts of the candidate's concepts in the history."""
        users, settings = self._users, self._users.settings
        first, last = self._offsets[block.users], self._offsets[block.users + 1]
        sizes = last - first
        readers = np.repeat(np.arange(len(sizes)), sizes)
        starts = np.cumsum(sizes) - sizes
        read = self._histories[first[readers] + np.arange(len(readers)) - starts[readers]]
        entities = users.article_entities
        score = settings.subtopic_strength * _count_same(
            readers, users.article_subtopic[read], owners, users.article_subtopic[block.candidates]
        )
        score += settings.category_strength * _count_same(
            readers, users.article_category[read], owners, users.article_category[block.candidates]
        )
        both = entities[read].T.ravel()
        for side in range(2):
            score += settings.entity_strength * _count_same(
                np.tile(readers, 2), both, owners, entities[block.candidates, side]
            )
        return score

    def later_pools(self, about: Attributes, *, test: bool = False) -> tuple[Pool, Pool]:
        """Return what dev (or test) impressions may show.

        Returns:
            News that training showed, and news of the day (or days).

        Raises:
            UsageError: One of the two is too small.
        """
        topics = self._users.topics
        warm = np.flatnonzero((self._shown > 0) & (about.era != DEV))
        cold = np.flatnonzero(about.era == (TEST if test else DEV))
        return Pool(warm, about, topics), Pool(cold, about, topics)

    def summary(self) -> dict[str, Any]:
        """Return all counts, ready for JSON."""
        sizes = np.diff(self._offsets)
        result: dict[str, Any] = {}
        for name, ranking in self._rankings.items():
            result |= {f"{name}_{metric}": value for metric, value in ranking.means().items()}
        for part, counts in self._counts.items():
            impressions = counts["impressions"]
            result[part] = {
                "impressions": impressions,
                "clicks": counts["clicks"],
                "candidates_mean": counts["candidates"] / impressions,
                "multi_click_share": counts["multi"] / impressions,
            }
        result["dev"]["cold_share"] = self._cold / self._counts["dev"]["candidates"]
        result["history_mean"] = float(sizes.mean())
        result["empty_histories"] = float((sizes == 0).mean())
        return result


def _count_same(
    readers: np.ndarray, concepts: np.ndarray, owners: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Count, for each candidate, the articles of its owner's history with the same concept."""
    bound = int(max(concepts.max(initial=0), wanted.max(initial=0))) + 1
    keys, counts = np.unique(readers.astype(np.int64) * bound + concepts, return_counts=True)
    if not len(keys):
        return np.zeros(len(owners))
    asked = owners.astype(np.int64) * bound + wanted
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[place] == asked, counts[place], 0).astype(np.float64)
