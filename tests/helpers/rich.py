"""Articles with abstracts and categories, and a tiny world of them whose column stores all four
texts."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers.sets import WORDS, article_texts, make_impressions
from helpers.world import TinyWorld

from shards.reader import ShardSet
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from shards.tokens import TokenColumn
from shards.writer import ShardWriter

LIMITS = {"title": 12, "abstract": 16, "body": 40, "category": 8}
"""What the world's column stores of each field."""


def rich_sample(row: int) -> dict[str, Any]:
    """A made-up article; every fifth has no abstract, every sixth no category."""
    rng = np.random.default_rng(1000 + row)
    title, body = article_texts(row)
    sample = {"id": f"N{row}", "title": title, "body": body}
    if row % 5 != 2:
        sample["abstract"] = " ".join(rng.choice(WORDS, size=int(rng.integers(1, 15))))
    if row % 6 != 4:
        sample |= {"category": "water", "subcategory": "water" if row % 2 else "river_flood"}
    return sample


def text_of(sample: dict[str, Any], field: str) -> str:
    """A field as text, written down a second time: the oracle of the tests."""
    if field != "category":
        return str(sample.get(field, ""))
    if "category" not in sample:
        return ""
    return {"water": "water", "river_flood": "water river flood"}[sample["subcategory"]]


def make_rich_articles(folder: Path, n: int = 40) -> ShardSet:
    """Write ``n`` of them in shards of 16."""
    with ShardWriter(folder, "articles", samples_per_shard=16) as writer:
        for row in range(n):
            writer.add(rich_sample(row))
        return writer.finish()


def make_rich_world(folder: Path, num_articles: int = 40, num_impressions: int = 60) -> TinyWorld:
    """The tiny world with them; its tokenizer is in ``folder/tokenizer``."""
    articles = make_rich_articles(folder / "articles", num_articles)
    train_tokenizer(articles, folder / "tokenizer", 200)
    lengths = {f"{field}_tokens": limit for field, limit in LIMITS.items()}
    tokenize_set(articles, folder / "tokenizer", fields=tuple(LIMITS), **lengths)
    impressions = make_impressions(folder / "clicks", articles, num_impressions)
    return TinyWorld(folder, articles, TokenColumn.open(articles), impressions)


def joined_ids(tokenizer: Any, sample: dict[str, Any], parts: list[tuple[str, int]]) -> list[int]:
    """The text that joins fields of an article, token by token, by the tokenizer itself."""
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = []
    for field, limit in parts:
        own = tokenizer.encode(text_of(sample, field), add_special_tokens=False)[: limit - 2]
        if own:
            ids += [*own, end]
    return [begin, *(ids or [end])]
