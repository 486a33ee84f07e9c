"""Define the subjects of a world's news: subtopics, entities, events, and the words for them.

A *concept* (subtopic, category, entity, kind of event) has several *forms*: different words with
the same meaning. A title uses one of the forms, a body uses many, so matching titles with bodies
teaches which words belong together; clicks alone show far too few words to learn it.
"""

import numpy as np

from shards.world.settings import WorldSettings
from shards.world.streams import random_stream
from shards.world.vocabulary import make_words, zipf_table

BACKGROUND, SUBTOPIC, CATEGORY, FIRST_ENTITY, SECOND_ENTITY, EVENT_TYPE, STORY = range(7)
"""Roles of a word in a text; ``STORY`` words are the few words that only this event has."""
NUM_ROLES = 7

CATEGORY_FORMS = 16
STORY_FORMS = 3

BODY_SHARES = (0.54, 0.20, 0.06, 0.07, 0.05, 0.05, 0.03)
"""Share of a body's words by role."""
TITLE_SHARES = (0.80, 0.05, 0.05, 0.0, 0.0, 0.0, 0.10)
"""Shares by role of the title words after the fixed slots."""


class Topics:
    """The concepts of a world and the words for them; the same for every process.

    Attributes:
        settings: Resolved settings.
        words: object[V], every word; ``words[V:]`` repeats them with a full stop.
        num_words: V.
        subtopic_category: int32[S], category of each subtopic.
        subtopic_mass: float64[S], share of the news in each subtopic; sums to 1.
        entity_subtopic: int32[E], the subtopic in which an entity mostly appears.
        event_subtopic: int32[V], event_entities: int32[V, 2], event_type: int32[V].
        event_edges: float64[V], cumulative share of articles by event.
        starts: word number of the first form of subtopic 0, category 0, entity 0, event type 0,
        story 0.
    """

    def __init__(self, settings: WorldSettings) -> None:
        """Draw all concepts; needs memory for words and events, not for articles.

        Args:
            settings: Resolved settings.
        """
        self.settings = settings
        self.num_subtopics = settings.categories * settings.subcategories
        self._make_words()
        self._make_concepts()
        self._make_tables()

    def _make_words(self) -> None:
        settings = self.settings
        sizes = {
            BACKGROUND: settings.background_words,
            SUBTOPIC: self.num_subtopics * settings.subtopic_forms,
            CATEGORY: settings.categories * CATEGORY_FORMS,
            FIRST_ENTITY: settings.entities * settings.entity_forms,
            EVENT_TYPE: settings.event_types * settings.event_forms,
            STORY: min(max(settings.events, 4 * STORY_FORMS), 50_000),
        }
        ends = np.cumsum(list(sizes.values()))
        self.starts = dict(zip(sizes, (ends - list(sizes.values())).tolist(), strict=True))
        self.starts[SECOND_ENTITY] = self.starts[FIRST_ENTITY]
        self.num_words = int(ends[-1])
        self.num_story_words = sizes[STORY]
        plain = make_words(random_stream(settings, "words"), self.num_words)
        self.words = np.array(plain + [word + "." for word in plain], dtype=object)

    def _make_concepts(self) -> None:
        settings = self.settings
        rng = random_stream(settings, "entities")
        self.subtopic_category = np.repeat(
            np.arange(settings.categories, dtype=np.int32), settings.subcategories
        )
        mass = 1.0 / (5.0 + rng.permutation(self.num_subtopics))
        self.subtopic_mass = mass / mass.sum()
        # Entities are distributed in proportion to the news of a subtopic, after each subtopic has
        # got one (if there are enough).
        self.entity_subtopic = np.sort(
            rng.choice(self.num_subtopics, settings.entities, p=self.subtopic_mass)
        ).astype(np.int32)

        rng = random_stream(settings, "events")
        count = settings.events
        self.event_subtopic = rng.choice(self.num_subtopics, count, p=self.subtopic_mass).astype(
            np.int32
        )
        self.event_entities = self._draw_entities(rng)
        self.event_type = rng.integers(0, settings.event_types, count).astype(np.int32)
        self.event_story = rng.integers(0, self.num_story_words - STORY_FORMS, count)
        fame = rng.gamma(1.0, size=count) + 0.05
        self.event_edges = np.cumsum(fame) / fame.sum()

    def _draw_entities(self, rng: np.random.Generator) -> np.ndarray:
        """Return int32[V, 2]: two different entities per event, mostly at home in its subtopic."""
        count, total = len(self.event_subtopic), self.settings.entities
        first = np.searchsorted(self.entity_subtopic, self.event_subtopic, side="left")
        last = np.searchsorted(self.entity_subtopic, self.event_subtopic, side="right")
        local = first[:, None] + (rng.random((count, 2)) ** 1.5 * (last - first)[:, None]).astype(
            np.int64
        )
        anywhere = rng.integers(0, total, (count, 2))
        away = (rng.random((count, 2)) < 0.25) | (last == first)[:, None]
        pair = np.where(away, anywhere, local)
        same = pair[:, 0] == pair[:, 1]
        pair[same, 1] = (pair[same, 0] + 1) % total
        return pair.astype(np.int32)

    def _make_tables(self) -> None:
        settings = self.settings
        self.background_table = zipf_table(settings.background_words)
        forms = (
            1,
            settings.subtopic_forms,
            CATEGORY_FORMS,
            settings.entity_forms,
            settings.entity_forms,
            settings.event_forms,
            STORY_FORMS,
        )
        # 256 entries each, so that one byte of randomness picks a form and one a role.
        self.form_table = np.stack([zipf_table(n, 0.5, bits=8) for n in forms])
        self.body_roles = _role_table(BODY_SHARES)
        self.title_roles = _role_table(TITLE_SHARES)

    def first_forms(self, events: np.ndarray) -> np.ndarray:
        """Return int64[n, 7]: for each event and role, the number of its concept's first word.

        Args:
            events: int[n] event numbers.
        """
        settings = self.settings
        subtopic = self.event_subtopic[events].astype(np.int64)
        entities = self.event_entities[events].astype(np.int64)
        result = np.zeros((len(events), NUM_ROLES), dtype=np.int64)
        result[:, SUBTOPIC] = self.starts[SUBTOPIC] + subtopic * settings.subtopic_forms
        category = self.subtopic_category[subtopic].astype(np.int64)
        result[:, CATEGORY] = self.starts[CATEGORY] + category * CATEGORY_FORMS
        start = self.starts[FIRST_ENTITY]
        result[:, FIRST_ENTITY] = start + entities[:, 0] * settings.entity_forms
        result[:, SECOND_ENTITY] = start + entities[:, 1] * settings.entity_forms
        kind = self.event_type[events].astype(np.int64)
        result[:, EVENT_TYPE] = self.starts[EVENT_TYPE] + kind * settings.event_forms
        result[:, STORY] = self.starts[STORY] + self.event_story[events]
        return result

    def category_names(self) -> list[str]:
        """Return the name of each category: its first word."""
        start = self.starts[CATEGORY]
        stop = start + self.settings.categories * CATEGORY_FORMS
        return [str(word) for word in self.words[start:stop:CATEGORY_FORMS]]

    def subtopic_names(self) -> list[str]:
        """Return the name of each subtopic: its first word."""
        forms = self.settings.subtopic_forms
        start = self.starts[SUBTOPIC]
        return [str(w) for w in self.words[start : start + self.num_subtopics * forms : forms]]


def _role_table(shares: tuple[float, ...]) -> np.ndarray:
    """Return int64[256] of roles in the given shares."""
    counts = np.round(np.array(shares) * 256).astype(int)
    counts[BACKGROUND] += 256 - counts.sum()
    return np.repeat(np.arange(NUM_ROLES), counts)
