"""Draw an article's title and body, and format them for files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from shards.world.articles import DEV, TEST, TRAIN, Attributes, article_id, attributes
from shards.world.settings import BLOCK_ARTICLES, TITLE_SLOTS
from shards.world.streams import random_stream
from shards.world.topics import (
    BACKGROUND,
    EVENT_TYPE,
    FIRST_ENTITY,
    NUM_ROLES,
    SECOND_ENTITY,
    SUBTOPIC,
    Topics,
)

_MIN_BODY = 12
_MAX_BODY_FACTOR = 10


def _pick_words(
    topics: Topics,
    rng: np.random.Generator,
    firsts: np.ndarray,
    rows: np.ndarray,
    roles: np.ndarray,
) -> np.ndarray:
    """Draw one word for each place of a text.

    Args:
        topics: The world's concepts.
        rng: Source of the choice among forms.
        firsts: int64[n, 7] first forms by article and role.
        rows: int64[K] article of each place.
        roles: int64[K] role of each place.

    Returns:
        int64[K] word numbers.
    """
    bits = rng.integers(0, 1 << 20, len(rows), dtype=np.uint32)
    forms = topics.form_table[roles, bits & 255]
    forms = np.where(roles == BACKGROUND, topics.background_table[bits], forms)
    return firsts.ravel()[rows * NUM_ROLES + roles] + forms


def title_words(topics: Topics, block: int, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the titles of one block.

    Each title holds both entities, two words of the subtopic and one of the event type: enough to
    know the article's subject for a reader who knows the words. The form of each word and its place
    are random.

    Args:
        topics: The world's concepts.
        block: Number of the block.
        firsts: int64[n, 7], from :meth:`Topics.first_forms` for the block's events.

    Returns:
        Word numbers int64[K] and offsets int64[n + 1].
    """
    rng = random_stream(topics.settings, "titles", block)
    count = len(firsts)
    lengths = TITLE_SLOTS + rng.poisson(topics.settings.title_words - TITLE_SLOTS, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(count), lengths)
    roles = topics.title_roles[rng.integers(0, 256, len(rows), dtype=np.uint8)]
    fixed = np.array([FIRST_ENTITY, SECOND_ENTITY, SUBTOPIC, SUBTOPIC, EVENT_TYPE])
    roles[offsets[:-1, None] + np.arange(TITLE_SLOTS)] = fixed
    words = _pick_words(topics, rng, firsts, rows, roles)
    # Sorting by row plus a random fraction shuffles within each title.
    return words[np.argsort(rows + rng.random(len(rows)))], offsets


def body_words(
    topics: Topics, block: int, firsts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the bodies of one block.

    Args:
        topics: The world's concepts.
        block: Number of the block.
        firsts: int64[n, 7], from :meth:`Topics.first_forms` for the block's events.

    Returns:
        Word numbers int64[K] (``num_words`` is added to a word with a full stop, at the end of a
        sentence), offsets int64[n + 1], and int64[n]: the number of words in the first two
        sentences, the abstract.
    """
    settings = topics.settings
    rng = random_stream(settings, "bodies", block)
    count = len(firsts)
    spread = settings.body_spread
    typical = np.log(settings.body_words) - spread**2 / 2
    lengths = np.round(rng.lognormal(typical, spread, count)).astype(np.int64)
    lengths = lengths.clip(_MIN_BODY, int(_MAX_BODY_FACTOR * settings.body_words))
    sentence = rng.integers(12, 26, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(np.arange(count), lengths)
    roles = topics.body_roles[rng.integers(0, 256, len(rows), dtype=np.uint8)]
    words = _pick_words(topics, rng, firsts, rows, roles)
    place = np.arange(len(rows)) - offsets[rows]
    ends = (place % sentence[rows]) == sentence[rows] - 1
    ends[offsets[1:] - 1] = True
    return words + ends * topics.num_words, offsets, np.minimum(2 * sentence, lengths)


def texts(topics: Topics, words: np.ndarray, offsets: np.ndarray) -> list[list[str]]:
    """Return the words of each text as strings."""
    strings = topics.words[words].tolist()
    edges = offsets.tolist()
    return [strings[edges[i] : edges[i + 1]] for i in range(len(edges) - 1)]


@dataclass(frozen=True)
class WrittenBlock:
    """The articles of one block in the form of files.

    Attributes:
        lines: JSON lines.
        news: Lines of MIND's ``news.tsv`` by part: the click log's articles that appeared up to the
            end of ``train``, ``dev`` and ``test``.
        title_words: Words in all titles; body_words: words in all bodies.
    """

    lines: bytes
    news: dict[str, bytes]
    title_words: int
    body_words: int


def write_block(topics: Topics, block: int) -> WrittenBlock:
    """Draw the articles of one block and write them in both forms.

    Args:
        topics: The world's concepts.
        block: Number of the block.
    """
    about = attributes(topics, block)
    firsts = topics.first_forms(about.event)
    titles, title_offsets = title_words(topics, block, firsts)
    bodies, body_offsets, abstracts = body_words(topics, block, firsts)
    articles = list(
        _articles(
            topics,
            block,
            about,
            texts(topics, titles, title_offsets),
            texts(topics, bodies, body_offsets),
            abstracts.tolist(),
        )
    )
    lines = "".join(json.dumps(article) + "\n" for article in articles)
    shown = max(0, topics.settings.click_articles - block * BLOCK_ARTICLES)
    events, eras = about.event.tolist(), about.era.tolist()
    news = [_news_line(topics, articles[i], events[i]) for i in range(min(shown, len(articles)))]
    return WrittenBlock(
        lines=lines.encode(),
        news={
            part: "".join(
                line for line, era in zip(news, eras, strict=False) if era <= last
            ).encode()
            for part, last in (("train", TRAIN), ("dev", DEV), ("test", TEST))
        },
        title_words=len(titles),
        body_words=len(bodies),
    )


def _articles(
    topics: Topics,
    block: int,
    about: Attributes,
    titles: list[list[str]],
    bodies: list[list[str]],
    abstracts: list[int],
) -> Iterator[dict[str, str]]:
    categories, subtopics = topics.category_names(), topics.subtopic_names()
    start = block * BLOCK_ARTICLES
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for i, event in enumerate(about.event.tolist()):
        subtopic = int(topics.event_subtopic[event])
        yield {
            "id": article_id(start + i),
            "title": " ".join(titles[i]),
            "body": " ".join(bodies[i]),
            "abstract": " ".join(bodies[i][: abstracts[i]]),
            "category": categories[topics.subtopic_category[subtopic]],
            "subcategory": subtopics[subtopic],
            "time": (epoch + timedelta(seconds=int(about.time[i]))).isoformat(),
        }


def _news_line(topics: Topics, article: dict[str, str], event: int) -> str:
    """Return a line of ``news.tsv``: MIND's eight columns, including the title's entities."""
    forms = topics.settings.entity_forms
    start = topics.starts[FIRST_ENTITY]
    entities = []
    for entity in topics.event_entities[event].tolist():
        first = start + entity * forms
        names = set(topics.words[first : first + forms].tolist())
        words = article["title"].split()
        places = [place for place, word in enumerate(words) if word in names][:1]
        entities.append(
            {
                "Label": str(topics.words[first]),
                "Type": "X",
                "WikidataId": f"Q{entity + 1}",
                "Confidence": 1.0,
                "OccurrenceOffsets": [len(" ".join([*words[:place], ""])) for place in places],
                "SurfaceForms": [words[place] for place in places],
            }
        )
    columns = (
        article["id"],
        article["category"],
        article["subcategory"],
        article["title"],
        article["abstract"],
        "",
        json.dumps(entities),
        "[]",
    )
    return "\t".join(columns) + "\n"
