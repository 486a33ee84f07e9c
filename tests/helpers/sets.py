"""Tiny shard sets for tests, written by the real writer: articles, impressions, tokens.

Everything is a pure function of its arguments, so two tests that ask for the same set get the same
bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.clicks import ClickColumn, write_click_column
from shards.reader import ShardSet
from shards.tokenize import tokenize_set
from shards.tokenizer import train_tokenizer
from shards.tokens import TokenColumn
from shards.writer import ShardWriter

WORDS = [
    "the", "mayor", "council", "river", "storm", "market", "vote", "strike", "match", "goal",
    "coach", "team", "court", "judge", "bank", "rate", "price", "rain", "flood", "school",
    "teacher", "student", "report", "minister", "party", "election", "film", "music", "album",
    "singer", "train", "road", "bridge", "fire", "police", "hospital", "doctor", "virus",
    "vaccine", "energy", "wind", "solar", "oil", "gas", "water", "farm", "harvest", "border",
]  # fmt: skip


def article_texts(row: int) -> tuple[str, str]:
    """(title, body) of a made-up article; every seventh article has no body."""
    rng = np.random.default_rng(row)
    title = " ".join(rng.choice(WORDS, size=int(rng.integers(2, 12)))).capitalize()
    if row % 7 == 3:
        return title, ""
    sentences = (
        " ".join(rng.choice(WORDS, size=int(rng.integers(4, 14)))).capitalize() + "."
        for _ in range(int(rng.integers(1, 8)))
    )
    return title, " ".join(sentences)


def make_articles(
    folder: Path,
    n: int = 50,
    samples_per_shard: int = 16,
    texts: Sequence[tuple[str, str]] | None = None,
) -> ShardSet:
    """Write ``n`` made-up articles (or those of ``texts``, pairs of title and body)."""
    pairs = [article_texts(row) for row in range(n)] if texts is None else list(texts)
    with ShardWriter(folder, "articles", samples_per_shard=samples_per_shard) as writer:
        for row, (title, body) in enumerate(pairs):
            writer.add({"id": f"N{row}", "title": title, "body": body})
        return writer.finish()


def impression_samples(n: int, num_articles: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` made-up impressions over rows ``0 .. num_articles - 1``; one in five has no history."""
    rng = np.random.default_rng(seed)
    samples = []
    for row in range(n):
        history = [] if row % 5 == 4 else rng.integers(num_articles, size=rng.integers(1, 9))
        candidates = rng.permutation(num_articles)[: int(rng.integers(2, min(9, num_articles)))]
        clicks = np.zeros(len(candidates), dtype=int)
        clicks[rng.permutation(len(candidates))[: 1 + int(row % 4 == 1 and len(clicks) > 2)]] = 1
        samples.append(
            {
                "id": str(row + 1),
                "user": f"U{int(rng.integers(n // 2 + 1))}",
                "time": f"2019-11-{11 + row % 5:02d}T08:00:{row % 60:02d}",
                "history": [int(h) for h in history],
                "candidates": [int(c) for c in candidates],
                "clicks": [int(c) for c in clicks],
            }
        )
    return samples


def make_impressions(
    folder: Path,
    articles: ShardSet,
    n: int = 40,
    samples_per_shard: int = 16,
    *,
    seed: int = 0,
    labelled: bool = True,
    samples: Sequence[dict[str, Any]] | None = None,
) -> ShardSet:
    """Write ``n`` made-up impressions (or ``samples``) over ``articles``, with their click
    column."""
    rows = impression_samples(n, articles.num_rows, seed) if samples is None else list(samples)
    with ShardWriter(
        folder,
        "impressions",
        samples_per_shard=samples_per_shard,
        source={"labelled": labelled},
        articles_fingerprint=articles.fingerprint,
    ) as writer:
        for sample in rows:
            kept = sample if labelled else {k: v for k, v in sample.items() if k != "clicks"}
            writer.add(kept)
        impressions = writer.finish()
    write_click_column(impressions)
    return impressions


def make_clicks(folder: Path, articles: ShardSet, n: int = 40, **options: Any) -> ClickColumn:
    """:func:`make_impressions`, opened for training."""
    return ClickColumn.open(make_impressions(folder, articles, n, **options))


def make_tokens(
    articles: ShardSet,
    folder: Path,
    *,
    vocab_size: int = 200,
    title_tokens: int = 12,
    body_tokens: int = 40,
) -> TokenColumn:
    """Train a small SentencePiece tokenizer into ``folder`` and tokenize ``articles`` with it."""
    train_tokenizer(articles, folder, vocab_size)
    tokenize_set(articles, str(folder), title_tokens=title_tokens, body_tokens=body_tokens)
    return TokenColumn.open(articles)
