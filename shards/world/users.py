"""Draw users: their interests, tastes, and earlier reading.

Memory grows with the number of users (about 150 bytes each, and 4 bytes per click of their
histories), never with the corpus.
"""

from collections.abc import Callable

import numpy as np

from shards.world.articles import BEFORE, TRAIN_START, Attributes
from shards.world.pools import Pool
from shards.world.settings import BLOCK_IMPRESSIONS, WorldSettings
from shards.world.shape import fill_lengths
from shards.world.streams import random_stream
from shards.world.topics import Topics

HISTORY_INTEREST = 0.85
"""Share of a history that was read out of interest; the rest is news of the day."""
ENTITY_SHARE = 0.35
"""Share of the interest-driven choices that follow an entity, not a subtopic."""

_ATTEMPTS = 8


class Users:
    """Interests of all users: a few weighted subtopics and entities each.

    Attributes:
        subtopics: int32[U, K]; subtopic_weights: float32[U, K]; entities, entity_weights: alike.
        activity_edges: float64[U], cumulative share of impressions by user.
    """

    def __init__(self, topics: Topics, about: Attributes) -> None:
        """Draw all interests.

        Args:
            topics: The world's concepts.
            about: Subjects of the click log's articles.
        """
        self.topics, self.settings = topics, topics.settings
        self.article_subtopic = topics.event_subtopic[about.event]
        self.article_category = topics.subtopic_category[self.article_subtopic]
        self.article_entities = topics.event_entities[about.event]
        self.quality = about.quality
        rng = random_stream(self.settings, "users")
        count, wanted = self.settings.users, self.settings.interests
        mass = np.cumsum(topics.subtopic_mass)
        drawn = np.searchsorted(mass, rng.random((count, wanted)) * mass[-1]).astype(np.int32)
        if wanted > 1:
            # The second interest is a sibling of the first: a user has a favourite category.
            size = self.settings.subcategories
            drawn[:, 1] = drawn[:, 0] // size * size + rng.integers(0, size, count)
        self.subtopics = drawn
        self.subtopic_weights = _shares(rng, count, wanted)
        self.categories = topics.subtopic_category[drawn]
        self.entities = self._draw_entities(rng)
        self.entity_weights = _shares(rng, count, wanted)
        activity = rng.lognormal(0.0, 1.0, count)
        self.activity_edges = np.cumsum(activity) / activity.sum()

    def _draw_entities(self, rng: np.random.Generator) -> np.ndarray:
        """Return int32[U, K]: entities at home in the user's own subtopics."""
        homes = self.topics.entity_subtopic
        total = len(homes)
        first = np.searchsorted(homes, self.subtopics, side="left")
        last = np.searchsorted(homes, self.subtopics, side="right")
        draws = rng.random(self.subtopics.shape)
        local = first + (draws**1.5 * (last - first)).astype(np.int64)
        return np.where(last > first, local, (draws * total).astype(np.int64)).astype(np.int32)

    def draw(self, share: np.ndarray) -> np.ndarray:
        """Draw users for impressions, active ones more often.

        Args:
            share: float64[n] uniform numbers.

        Returns:
            int64[n] user numbers.
        """
        return np.minimum(np.searchsorted(self.activity_edges, share), len(self.activity_edges) - 1)

    def affinity(self, users: np.ndarray, articles: np.ndarray) -> np.ndarray:
        """Compute how much users like articles: log-odds before noise, without quality.

        Args:
            users: int[K] user numbers.
            articles: int[K] article numbers.

        Returns:
            float64[K].
        """
        settings = self.settings
        weights = self.subtopic_weights[users]
        same = self.subtopics[users] == self.article_subtopic[articles][:, None]
        result = settings.subtopic_strength * (weights * same).sum(1, dtype=np.float64)
        same = self.categories[users] == self.article_category[articles][:, None]
        result += settings.category_strength * (weights * same).sum(1, dtype=np.float64)
        weights = self.entity_weights[users]
        for side in range(2):
            same = self.entities[users] == self.article_entities[articles, side][:, None]
            result += settings.entity_strength * (weights * same).sum(1, dtype=np.float64)
        return result

    def choose(
        self,
        rng: np.random.Generator,
        users: np.ndarray,
        pool: Pool,
        until: np.ndarray,
        interest_share: float,
    ) -> np.ndarray:
        """Draw one article for each place of an impression or a history.

        Args:
            rng: Source of the draws.
            users: int[K], owner of each place.
            pool: Articles to draw from.
            until: int64[K], latest publication time (epoch seconds).
            interest_share: Share of places filled for the user's interests.

        Returns:
            int64[K] article numbers.
        """
        draws = rng.random((4, len(users)))
        chosen = pool.draw(draws[0], until)
        by_interest = draws[1] < interest_share
        by_entity = by_interest & (draws[1] < interest_share * ENTITY_SHARE)
        for mask, concepts, weights, index in (
            (by_interest & ~by_entity, self.subtopics, self.subtopic_weights, pool.by_subtopic),
            (by_entity, self.entities, self.entity_weights, pool.by_entity),
        ):
            who = users[mask]
            slot = (np.cumsum(weights[who], axis=1) < draws[2, mask, None]).sum(1)
            concept = concepts[who, np.minimum(slot, concepts.shape[1] - 1)]
            chosen[mask] = index.draw(concept, until[mask], draws[3, mask], chosen[mask])
        return chosen


def _shares(rng: np.random.Generator, count: int, parts: int) -> np.ndarray:
    """Return float32[count, parts]: Dirichlet weights, a few large ones in each row."""
    weights = rng.gamma(1.0, size=(count, parts)) + 1e-3
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def fill_distinct(
    counts: np.ndarray, draw: Callable[[np.ndarray, bool], np.ndarray], bound: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw distinct articles for each owner: replace repeated ones by further draws.

    Args:
        counts: int[n], number of articles per owner; fewer are drawn if the pool has too few.
        draw: From int[K] owners to int[K] articles; its second argument requests draws from all
            news, because an owner may have seen all news on its interests.
        bound: Exclusive upper bound of article numbers.

    Returns:
        Owners int64[K] ascending, and articles int64[K], ascending for each owner.
    """
    keys = np.empty(0, dtype=np.int64)
    missing = counts.astype(np.int64)
    for attempt in range(_ATTEMPTS):
        owners = np.repeat(np.arange(len(counts)), missing)
        if not len(owners):
            break
        drawn = owners * bound + draw(owners, attempt >= _ATTEMPTS // 2)
        keys = _sorted_unique(np.concatenate([keys, drawn]))
        missing = counts - np.bincount(keys // bound, minlength=len(counts))
    return keys // bound, keys % bound


def _sorted_unique(keys: np.ndarray) -> np.ndarray:
    """Return each key once, ascending; several times as fast as ``np.unique``, which hashes."""
    keys = np.sort(keys)
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return keys[first]


def draw_histories(users: Users, about: Attributes, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """Draw what every user had read before the log began, oldest first.

    A user keeps the same history throughout the log.

    Args:
        users: All users.
        about: Subjects of the click log's articles.
        pool: Articles of the time before the log.

    Returns:
        Articles int32[K] and offsets int64[U + 1].
    """
    settings: WorldSettings = users.settings
    parts, sizes = [], []
    for block in range(-(-settings.users // BLOCK_IMPRESSIONS)):
        rng = random_stream(settings, "histories", block)
        start = block * BLOCK_IMPRESSIONS
        count = min(BLOCK_IMPRESSIONS, settings.users - start)
        empty = rng.random(BLOCK_IMPRESSIONS)[:count] < settings.empty_histories
        wanted = fill_lengths(
            rng, empty, settings.history_mean, settings.empty_histories, settings.max_history
        )

        def draw(
            owners: np.ndarray,
            any_news: bool,
            rng: np.random.Generator = rng,
            start: int = start,
        ) -> np.ndarray:
            until = np.full(len(owners), TRAIN_START)
            share = 0.0 if any_news else HISTORY_INTEREST
            return users.choose(rng, start + owners, pool, until, share)

        owners, articles = fill_distinct(wanted, draw, len(about.era))
        order = np.lexsort((about.time[articles], owners))
        parts.append(articles[order].astype(np.int32))
        sizes.append(np.bincount(owners, minlength=count))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return np.concatenate(parts), offsets


def history_pool(users: Users, about: Attributes) -> Pool:
    """Return the pool of articles from which histories are drawn."""
    return Pool(np.flatnonzero(about.era == BEFORE), about, users.topics)
