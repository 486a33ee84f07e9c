"""Draw each article's subject and time, in blocks that depend on their number alone."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from shards.world.settings import BLOCK_ARTICLES, WorldSettings
from shards.world.streams import random_stream
from shards.world.topics import Topics

BEFORE, TRAIN, DEV, TEST = 0, 1, 2, 3
"""When an article appeared: before the log (for histories), on the training days, on the dev day,
or on the test days."""

_DAY = 86_400
DEV_START = int(datetime(2019, 11, 15, tzinfo=UTC).timestamp())
TRAIN_START = DEV_START - 6 * _DAY
TEST_START = DEV_START + _DAY
TEST_DAYS = 7
_ERA_EDGES = (0.45, 0.80)
_ERA_EDGES_WITH_TEST = (0.43, 0.779, 0.799)
"""Shares as in MIND's large parts: 77.9% of the news are in training, 2.0% come on the dev day."""
# The dev day's news appears before six in the morning and its impressions later, so every
# impression may show all of it.
_ERA_SPANS = (
    (TRAIN_START - 28 * _DAY, TRAIN_START - _DAY),
    (TRAIN_START - _DAY, DEV_START),
    (DEV_START, DEV_START + 6 * 3600),
    (TEST_START, TEST_START + TEST_DAYS * _DAY),
)


@dataclass(frozen=True)
class Attributes:
    """The subjects of a run of articles; all arrays have one entry per article.

    Attributes:
        event: int64[n]; era: int64[n] (``BEFORE``, ``TRAIN``, ``DEV``, ``TEST``); time: int64[n],
        epoch seconds; quality: float64[n], standard normal: raises how often an article is shown
        and clicked by everyone.
    """

    event: np.ndarray
    era: np.ndarray
    time: np.ndarray
    quality: np.ndarray


def num_blocks(settings: WorldSettings) -> int:
    """Return the number of blocks of articles in the world."""
    return -(-settings.articles // BLOCK_ARTICLES)


def block_size(settings: WorldSettings, block: int) -> int:
    """Return the number of articles of one block; only the last block is short."""
    return min(BLOCK_ARTICLES, settings.articles - block * BLOCK_ARTICLES)


def attributes(topics: Topics, block: int) -> Attributes:
    """Draw the subjects of one block's articles, without writing the articles."""
    rng = random_stream(topics.settings, "attributes", block)
    # A short last block draws as many numbers as a full one, so that a smaller corpus is the
    # beginning of a larger one.
    draws = rng.random((3, BLOCK_ARTICLES))
    quality = rng.standard_normal(BLOCK_ARTICLES)
    count = block_size(topics.settings, block)
    event = np.searchsorted(topics.event_edges, draws[0])
    edges = _ERA_EDGES_WITH_TEST if topics.settings.test_impressions else _ERA_EDGES
    era = np.searchsorted(np.array(edges), draws[1], side="right")
    spans = np.array(_ERA_SPANS)[era]
    time = (spans[:, 0] + draws[2] * (spans[:, 1] - spans[:, 0])).astype(np.int64)
    return Attributes(
        event=np.minimum(event, len(topics.event_edges) - 1)[:count],
        era=era[:count],
        time=time[:count],
        quality=quality[:count],
    )


def attributes_of_first(topics: Topics, count: int) -> Attributes:
    """Draw the subjects of the first ``count`` articles."""
    blocks = [attributes(topics, block) for block in range(-(-count // BLOCK_ARTICLES))]
    names = ("event", "era", "time", "quality")
    return Attributes(
        **{name: np.concatenate([getattr(b, name) for b in blocks])[:count] for name in names}
    )


def article_id(row: int) -> str:
    """Return the id of the article with this number, in MIND's style."""
    return f"N{row + 1}"
