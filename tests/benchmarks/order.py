"""Time to the first batch of a resumed epoch, cost of measuring an order, reach of the negatives.

Counts alone, no files: what the order itself costs. With ``--set`` also a real set, from opening it
to the first batch of token ids. Run from the root of the repository::

    python tests/benchmarks/order.py
    python tests/benchmarks/order.py --set sets/news
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.mixing import measure_mixing
from shards.negatives import draw_negatives, draw_window_negatives
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.stream import Stream
from shards.tokens import TokenColumn

ARTICLES = 2_000_000
A_SHARD = 4096
BATCH = 32
NEGATIVES = 9


def timed(run: Callable[[], object], repeats: int) -> str:
    """Median and range of the wall time of ``run`` in ms."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return f"{statistics.median(times):9.2f} ms  ({min(times):.2f} to {max(times):.2f})"


def counts_of(articles: int) -> list[int]:
    """Articles of each shard."""
    whole, rest = divmod(articles, A_SHARD)
    return [A_SHARD] * whole + ([rest] if rest else [])


def first_batch(counts: list[int], share: float, window: int = 4) -> None:
    """What a resumed run does before its first step: a fresh order, a seek, a batch."""
    order = EpochOrder(counts, "f", 0, window)
    position = order.position_at(int(share * order.num_units) // BATCH * BATCH)
    next(Stream(order, BATCH, position=position))


def first_tokens(folder: str, share: float) -> None:
    """The same on a set, with opening it and its token column."""
    articles = ShardSet.open(folder)
    tokens = TokenColumn.open(articles)
    counts = np.diff(articles.shard_starts).tolist()
    order = EpochOrder(counts, articles.fingerprint, 0)
    position = order.position_at(int(share * order.num_units) // BATCH * BATCH)
    rows = next(Stream(order, BATCH, position=position)).rows
    tokens.view(("title", tokens.limits["title"])).groups(rows, 8192)
    tokens.view(("body", tokens.limits["body"])).groups(rows, 8192)


def reach(counts: list[int], batches: int = 200) -> None:
    """How many different articles are negatives of so many global batches, by where they come
    from."""
    order = EpochOrder(counts, "f", 0)
    rows, epochs = order.span(0, batches * BATCH)
    corpus = draw_negatives(0, rows, epochs, order.num_units, NEGATIVES)
    window = draw_window_negatives(order, 0, rows, epochs, NEGATIVES)
    print(f"negatives of {batches} global batches of {BATCH} ({window.size:,} draws)")
    for name, drawn in (("corpus", corpus), ("window", window)):
        shards = np.searchsorted(order.shard_starts, drawn, side="right")
        print(
            f"  {name}: {len(np.unique(drawn)):>7,} different articles from "
            f"{len(np.unique(shards)):>4,} shards, "
            f"{np.isin(drawn, rows).mean():6.1%} of them also samples of these batches"
        )


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=ARTICLES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--set", help="an article set with a token column")
    options = parser.parse_args()
    counts = counts_of(options.articles)
    print(f"{options.articles:,} articles in {len(counts):,} shards, medians of {options.repeats}")
    for window in (4, 32, len(counts)):
        for share in (0.0, 0.01, 0.9):
            took = timed(lambda s=share, w=window: first_batch(counts, s, w), options.repeats)
            print(f"  window {window:>4}, first batch at {share:4.0%}: {took}")
    order = EpochOrder(counts, "f", 0)
    print(f"  measure_mixing:                 {timed(lambda: measure_mixing(order, BATCH), 5)}")
    rows, epochs = order.span(0, BATCH)
    for name, run in (
        ("corpus", lambda: draw_negatives(0, rows, epochs, order.num_units, NEGATIVES)),
        ("window", lambda: draw_window_negatives(order, 0, rows, epochs, NEGATIVES)),
    ):
        print(f"  negatives of a batch, {name}:   {timed(run, options.repeats)}")
    reach(counts)
    if options.set:
        print(f"{options.set}, opened anew each time")
        for share in (0.0, 0.01, 0.9):
            took = timed(lambda s=share: first_tokens(options.set, s), options.repeats)
            print(f"  first token batch at {share:4.0%}:       {took}")


if __name__ == "__main__":
    main()
