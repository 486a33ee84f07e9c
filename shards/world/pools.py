"""Select which articles can be shown when, by popularity and by concept."""

import numpy as np

from shards.errors import UsageError
from shards.world.articles import Attributes
from shards.world.topics import Topics

_SPAN = 1 << 33
"""Above every publication time in epoch seconds: makes (concept, time) sortable as one number."""


class ConceptIndex:
    """Articles of a pool by concept, and by time within a concept."""

    def __init__(
        self,
        concepts: np.ndarray,
        articles: np.ndarray,
        times: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Sort the pool.

        Args:
            concepts: int[K].
            articles: int64[K].
            times: int64[K] epoch seconds.
            weights: float64[K], relative chance of each article; None makes all equal.
        """
        keys = concepts.astype(np.int64) * _SPAN + times
        order = np.argsort(keys, kind="stable")
        self._keys, self._articles = keys[order], articles[order]
        self._edges = None if weights is None else np.append(0.0, np.cumsum(weights[order]))

    def draw(
        self, concepts: np.ndarray, until: np.ndarray, share: np.ndarray, otherwise: np.ndarray
    ) -> np.ndarray:
        """Draw an article of each concept that is published by then.

        Args:
            concepts: int[K].
            until: int64[K] epoch seconds.
            share: float64[K] uniform numbers.
            otherwise: int64[K] articles for concepts without a published article.

        Returns:
            int64[K] article numbers.
        """
        base = concepts.astype(np.int64) * _SPAN
        first = np.searchsorted(self._keys, base, side="left")
        last = np.searchsorted(self._keys, base + until, side="right")
        if self._edges is None:
            place = first + (share * (last - first)).astype(np.int64)
        else:
            low, high = self._edges[first], self._edges[last]
            place = np.searchsorted(self._edges, low + share * (high - low), side="right") - 1
            place = np.minimum(place, last - 1)
        found = self._articles[np.minimum(place, len(self._articles) - 1)]
        return np.where(last > first, found, otherwise)


class Pool:
    """A set of articles to draw from, by popularity or by concept.

    Attributes:
        by_subtopic, by_entity: the indexes by concept.
    """

    def __init__(self, articles: np.ndarray, about: Attributes, topics: Topics) -> None:
        """Build the indexes.

        Args:
            articles: int64[n] numbers of the pool's articles.
            about: Subjects of the click log's articles.
            topics: The world's concepts.

        Raises:
            UsageError: The pool has fewer than two articles, too few for an impression.
        """
        if len(articles) < 2:
            raise UsageError(
                f"--click-articles leaves {len(articles)} articles for a part of the click log, "
                "which needs at least 2; ask for more"
            )
        order = articles[np.argsort(about.time[articles], kind="stable")]
        self._articles, self._times = order, about.time[order]
        skew = topics.settings.popularity_skew
        weights = np.exp((skew or 0.5) * about.quality[order])
        self._edges = np.cumsum(weights)
        events = about.event[order]
        self.by_subtopic = ConceptIndex(
            topics.event_subtopic[events], order, self._times, weights if skew else None
        )
        self.by_entity = ConceptIndex(
            topics.event_entities[events].T.ravel(),
            np.tile(order, 2),
            np.tile(self._times, 2),
            np.tile(weights, 2) if skew else None,
        )

    def draw(self, share: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Draw articles by popularity among those that are published by then.

        Args:
            share: float64[K] uniform numbers.
            until: int64[K] epoch seconds.

        Returns:
            int64[K] article numbers.
        """
        # Before anything is published, use the two earliest articles.
        out = np.maximum(np.searchsorted(self._times, until, side="right"), 2)
        place = np.searchsorted(self._edges, share * self._edges[out - 1], side="right")
        return self._articles[np.minimum(place, out - 1)]
