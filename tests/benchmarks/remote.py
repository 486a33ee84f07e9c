"""A set at a URL against the same set here: time to the first batch, and time a batch.

    PYTHONPATH=tests:. python tests/benchmarks/remote.py [--articles 8192] [--runs 5]

Batches of post-training (9 negatives a body, no model) over HTTP on loopback. ``cold`` begins with
an empty cache, ``warm`` with what a run before it left, ``here`` is the folder itself. Figures are
medians with the lowest and the highest run; the ratio is what travels.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from helpers.elsewhere import serve
from helpers.sets import make_articles, make_tokens
from helpers.world import TINY_MODEL

from shards.cache import CacheSettings
from shards.reader import ShardSet
from shards.stream import Stream
from shards.tokens import TokenColumn
from trainer.tasks.post_train.pairs import PostTrainData
from trainer.tasks.post_train.task import PostTrainConfig, PostTrainDataConfig
from trainer.tasks.sources import Sources

BATCH = 32


def run(path: str, cache: Path, batches: int) -> tuple[float, float]:
    """Seconds to the first batch, and milliseconds a batch after it."""
    config = PostTrainDataConfig(max_title_tokens=12, max_body_tokens=40, window_shards=4)
    config = replace(config, num_negatives=TINY_MODEL["data.num_negatives"] * 3)
    started = time.perf_counter()
    articles = ShardSet.open(path, cache=CacheSettings(str(cache)))
    sources = Sources(articles, TokenColumn.open(articles))
    data = PostTrainData(PostTrainConfig(data=config), sources)
    stream = Stream(data.order, BATCH)
    data.collate(next(stream))
    first = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(batches):
        data.collate(next(stream))
    return first, 1000 * (time.perf_counter() - started) / batches


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Build a set, serve it, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    batches = arguments.articles // BATCH - 1  # one epoch
    found: dict[str, list[tuple[float, float]]] = {"here": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        articles = make_articles(folder / "set", arguments.articles, 512)
        make_tokens(articles, folder / "tokenizer")
        with serve(folder) as server:
            for number in range(arguments.runs):
                cache = folder / f"cache-{number}"
                found["here"].append(run(str(articles.path), cache, batches))
                found["cold"].append(run(f"{server.url}/set", cache, batches))
                found["warm"].append(run(f"{server.url}/set", cache, batches))
    print(f"{arguments.articles} articles, {articles.num_shards} shards, {arguments.runs} runs")
    for kind, runs in found.items():
        firsts, each = [a for a, _ in runs], [b for _, b in runs]
        ratio = statistics.median(each) / statistics.median([b for _, b in found["here"]])
        print(f"{kind}: first batch {spread(firsts, 3)} s; {spread(each, 3)} ms a batch, "
              f"{ratio:.2f} of here")  # fmt: skip


if __name__ == "__main__":
    main()
