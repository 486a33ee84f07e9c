"""Define the settings of a synthesized world.

Every number that shapes the world is a field of :class:`WorldSettings`; two equal settings give
the same bytes. Some fields that are 0 are derived from the number of articles
(:meth:`WorldSettings.resolve`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from shards.errors import UsageError

FORMAT = 1
"""Version of the format; raised whenever equal settings would give other bytes than before."""

BLOCK_ARTICLES = 512
"""Articles that share one random stream. Part of the format: no option may change it."""

BLOCK_IMPRESSIONS = 1024
"""Impressions that share one random stream. Part of the format, as above."""

TITLE_SLOTS = 5
"""Words of a title that name its subject: two entities, two of the subtopic, an event type."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Sizes, lengths, tastes and noise of a world."""

    articles: int
    """Articles of the corpus."""
    users: int
    """Users of the click log."""
    train_impressions: int
    """Impressions of 9 to 14 November 2019."""
    dev_impressions: int
    """Impressions of 15 November 2019."""
    test_impressions: int = 0
    """Impressions of 16 to 22 November 2019, written without labels; 0: no test part."""
    seed: int = 0
    """Seed that determines the whole world."""
    click_articles: int = 0
    """Number of first articles in the click log; 0: all, at most 161,013 (MIND's)."""

    title_words: float = 11.84
    """Mean words of a title (the paper's corpus)."""
    body_words: float = 511.43
    """Mean words of a body (the paper's corpus)."""
    body_spread: float = 0.6
    """Standard deviation of the logarithm of a body's length."""

    categories: int = 16
    """Top-level topics."""
    subcategories: int = 8
    """Subtopics of each category."""
    entities: int = 0
    """People, places and firms; 0: one for 20 articles, 60 to 20,000."""
    events: int = 0
    """Stories that several articles tell; 0: one for 4 articles."""
    event_types: int = 30
    """Kinds of event."""
    subtopic_forms: int = 12
    """Words that all name the same subtopic."""
    entity_forms: int = 4
    """Words that all name the same entity."""
    event_forms: int = 6
    """Words that all name the same kind of event."""
    background_words: int = 0
    """Words without a subject, with Zipf's frequencies; 0: one for 2 articles, 500 to 20,000."""

    history_mean: float = 32.9
    """Mean clicks in a user's history (MIND)."""
    empty_histories: float = 0.022
    """Share of users without any history (MIND)."""
    max_history: int = 0
    """Longest history; 0: 24 times the mean."""
    candidates_mean: float = 37.4
    """Mean candidates of an impression (MIND)."""
    max_candidates: int = 0
    """Most candidates of an impression; 0: 8 times the mean."""
    popularity_skew: float = 0.0
    """Standard deviation of the logarithm of an article's popularity; 0: a mild skew, by quality,
    of the news of the day alone."""
    cold_share: float = 0.53
    """Share of dev candidates that are news never seen in the training part."""
    interest_share: float = 0.25
    """Share of candidates chosen for the user's interests; the rest is news of the day."""
    multi_click_share: float = 0.28
    """Share of impressions with two clicks or more (MIND)."""
    interests: int = 3
    """Number of subtopics, and of entities, that interest a user."""
    subtopic_strength: float = 5.0
    """Log-odds that a user's whole interest in a subtopic adds to a click."""
    entity_strength: float = 3.0
    """Log-odds that a user's whole interest in an entity adds to a click."""
    category_strength: float = 2.0
    """Log-odds that a user's whole interest in a category adds to a click."""
    quality_strength: float = 0.3
    """Log-odds that one standard deviation of an article's quality adds to a click."""
    noise: float = 1.0
    """Temperature of the choice: log-odds are divided by it. Larger lowers the ceiling."""

    def resolve(self) -> "WorldSettings":
        """Check all settings and return them with derived values in place of 0.

        Raises:
            UsageError: A value is outside its range; the message names the option.
        """
        filled = dataclasses.replace(
            self,
            click_articles=self.click_articles or min(self.articles, 161_013),
            entities=self.entities or min(max(self.articles // 20, 60), 20_000),
            events=self.events or max(self.articles // 4, 20),
            background_words=self.background_words or min(max(self.articles // 2, 500), 20_000),
        )
        filled._check()
        return filled

    def _check(self) -> None:
        for name, lowest, highest in _RANGES:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and lowest <= value <= highest):
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} is {value}; it must lie between {lowest:,} and {highest:,}"
                )
        if self.click_articles > self.articles:
            raise UsageError(
                f"--click-articles is {self.click_articles:,}, but --articles is only "
                f"{self.articles:,}; the click log shows articles of the corpus: ask for fewer"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, ready for JSON."""
        return dataclasses.asdict(self)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("articles", 100, 100_000_000),
    ("users", 1, 20_000_000),
    ("train_impressions", 1, 100_000_000),
    ("dev_impressions", 1, 100_000_000),
    ("test_impressions", 0, 100_000_000),
    ("seed", 0, 2**63 - 1),
    ("click_articles", 100, 5_000_000),
    ("title_words", TITLE_SLOTS + 1, 60),
    ("body_words", 20, 20_000),
    ("body_spread", 0.0, 1.5),
    ("categories", 2, 1_000),
    ("subcategories", 1, 1_000),
    ("entities", 2, 1_000_000),
    ("events", 2, 50_000_000),
    ("event_types", 1, 10_000),
    ("subtopic_forms", 1, 64),
    ("entity_forms", 1, 64),
    ("event_forms", 1, 64),
    ("background_words", 10, 1_000_000),
    ("history_mean", 0.0, 1_000),
    ("empty_histories", 0.0, 1.0),
    ("max_history", 0, 100_000),
    ("candidates_mean", 2.0, 300),
    ("max_candidates", 0, 100_000),
    ("popularity_skew", 0.0, 5.0),
    ("cold_share", 0.0, 1.0),
    ("interest_share", 0.0, 1.0),
    ("multi_click_share", 0.0, 1.0),
    ("interests", 1, 64),
    ("subtopic_strength", 0.0, 100.0),
    ("entity_strength", 0.0, 100.0),
    ("category_strength", 0.0, 100.0),
    ("quality_strength", 0.0, 100.0),
    ("noise", 0.01, 1_000.0),
)
