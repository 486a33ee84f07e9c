"""Token batches out of a column against tokenizing in the loader; padding and step time by budget.

Texts are the press releases of ``TNR_TEST_DATA`` where it is set, else made up with lengths like
news. Everything runs on one thread unless ``--threads`` says otherwise. Run from the root of the
repository::

    TNR_TEST_DATA=DATA python tests/benchmarks/tokens.py --tokenizer MINILM_FOLDER
"""

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.stream import Stream
from shards.tokenize import tokenize_set
from shards.tokenizer import load_tokenizer, train_tokenizer
from shards.tokens import TokenColumn
from shards.writer import ShardWriter

TITLE, BODY, BATCH = 24, 512, 32


def texts(count: int) -> Iterator[tuple[str, str]]:
    """(title, body) of real press releases, or of words drawn by frequency rank."""
    data = os.environ.get("TNR_TEST_DATA")
    if data:
        with gzip.open(Path(data) / "news-doj" / "doj.jsonl.gz", "rt", encoding="utf-8") as file:
            for _, line in zip(range(count), file, strict=False):
                row = json.loads(line)
                yield row["title"], row["body"]
        return
    rng = np.random.default_rng(0)
    letters = list("etaoinshrdlu")
    words = ["".join(rng.choice(letters, size=int(rng.integers(2, 10)))) for _ in range(20_000)]
    for _ in range(count):
        sizes = int(np.clip(rng.normal(14, 4), 3, 40)), int(rng.lognormal(6.2, 0.55))
        title, body = (
            " ".join(words[int(i)] for i in np.minimum(rng.zipf(1.3, n), 20_000) - 1) for n in sizes
        )
        yield title, body


def make_set(folder: Path, count: int, tokenizer: str | None) -> tuple[ShardSet, TokenColumn, str]:
    """Write the set and its token column."""
    with ShardWriter(folder / "set", "articles", samples_per_shard=1024) as writer:
        for row, (title, body) in enumerate(texts(count)):
            writer.add({"id": str(row), "title": title, "body": body})
        articles = writer.finish()
    if tokenizer is None:
        tokenizer = str(folder / "tokenizer")
        train_tokenizer(articles, tokenizer, 8000)
    tokenize_set(articles, tokenizer, title_tokens=TITLE, body_tokens=BODY)
    return articles, TokenColumn.open(articles), tokenizer


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def column_against_loader(
    articles: ShardSet, tokens: TokenColumn, tokenizer: str, rounds: int
) -> None:
    """Batches of titles and bodies a second, both ways, round after round in turn."""
    fast = load_tokenizer(tokenizer)
    counts = np.diff(articles.shard_starts).tolist()
    stream = Stream(EpochOrder(counts, articles.fingerprint, 0), BATCH)
    options = {"truncation": True, "padding": True, "return_tensors": "np"}

    def from_column(rows: np.ndarray) -> None:
        tokens.batch("title", rows, TITLE)
        tokens.batch("body", rows, BODY)

    def grouped(rows: np.ndarray) -> None:
        tokens.view(("title", TITLE)).groups(rows, 8192)
        tokens.view(("body", BODY)).groups(rows, 8192)

    def in_loader(rows: np.ndarray) -> None:
        samples = [articles.sample(row) for row in rows.tolist()]
        fast([s["title"] for s in samples], max_length=TITLE, **options)
        fast([s["body"] for s in samples], max_length=BODY, **options)

    ways = (
        ("column", from_column, 100),
        ("column, grouped", grouped, 100),
        ("loader", in_loader, 3),
    )
    rates: dict[str, list[float]] = {name: [] for name, *_ in ways}
    for _ in range(rounds):
        for name, way, number in ways:
            batches = [next(stream).rows for _ in range(number)]
            started = time.perf_counter()
            for rows in batches:
                way(rows)
            rates[name].append(number / (time.perf_counter() - started))
    print(f"batches of {BATCH} a second (title {TITLE}, body {BODY}), medians of {rounds} rounds")
    for name, values in rates.items():
        print(f"  {name:<16} {spread(values)}")
    base = rates["loader"]
    for name in ("column", "column, grouped"):
        ratio = [ours / theirs for ours, theirs in zip(rates[name], base, strict=True)]
        print(f"  {name} over loader: {spread(ratio)}x")


def steps(articles: ShardSet, tokens: TokenColumn, options: argparse.Namespace) -> None:
    """Forward and backward of post-training by budget, in turn: padding, and time over no
    grouping."""

    from trainer.config.schema import BackboneConfig, ModelConfig
    from trainer.models.build import build_news_encoder
    from trainer.tasks.post_train.pairs import PostTrainData, PostTrainModule
    from trainer.tasks.post_train.task import PostTrainConfig, PostTrainDataConfig
    from trainer.tasks.sources import Sources
    from trainer.tasks.texts import Grouping

    rounds, layers, budgets = options.rounds, options.layers, options.budgets
    backbone = BackboneConfig(
        num_layers=layers,
        hidden_size=384,
        num_heads=12,
        intermediate_size=1536,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    sizes = {"vocab_size": tokens.vocab_size, "pad_id": tokens.pad_id}
    task = PostTrainModule(build_news_encoder(ModelConfig(backbone=backbone), **sizes)).train()
    for body, batch in (map(int, shape.split("x")) for shape in options.shapes):
        config = PostTrainDataConfig(max_title_tokens=TITLE, max_body_tokens=body)
        data = PostTrainData(PostTrainConfig(data=config), Sources(articles, tokens))
        stream = Stream(data.order, batch)
        times: dict[int, list[float]] = {budget: [] for budget in budgets}
        padding: dict[int, list[float]] = {budget: [] for budget in budgets}
        calls: dict[int, list[int]] = {budget: [] for budget in budgets}
        for turn in range(rounds + 1):
            rows = next(stream)
            for budget in budgets:
                data.grouping = Grouping(budget)
                made = data.collate(rows)
                pairs = made.batch
                padding[budget].append(100 * made.counts.padding)
                calls[budget].append(len(pairs.titles.parts) + len(pairs.bodies.parts))
                started = time.perf_counter()
                task(pairs)["loss"].backward()
                if turn:  # the first warms up
                    times[budget].append(time.perf_counter() - started)
                task.zero_grad(set_to_none=True)
        print(f"step of batch {batch}, body {body}, {layers} x 384, medians of {rounds}")
        for budget in budgets:
            ratio = [a / b for a, b in zip(times[budget], times[0], strict=True)]
            print(
                f"  budget {budget or 'none':>6}: {statistics.median(times[budget]):6.2f} s, "
                f"{statistics.median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f}) of none, "
                f"padding {statistics.mean(padding[budget]):4.1f}%, "
                f"{statistics.mean(calls[budget]):.1f} forwards",
                flush=True,
            )


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=4096)
    parser.add_argument("--tokenizer", help="folder of a fast tokenizer; one is trained without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6, help="0 leaves the training steps out")
    parser.add_argument("--shapes", nargs="+", default=["128x32", "512x8"], help="BODYxBATCH")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[0, 1024, 2048, 4096, 8192], help="0 comes first"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        articles, tokens, name = make_set(Path(folder), options.articles, options.tokenizer)
        column_against_loader(articles, tokens, name, max(options.rounds, 5))
        if options.layers:
            import torch

            torch.set_num_threads(options.threads)
            steps(articles, tokens, options)


if __name__ == "__main__":
    main()
