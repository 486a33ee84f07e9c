"""One epoch of post-training batches out of a tokenized set: time, peak memory, padding.

Every global batch of an epoch as the trainer gets it: bodies in the order of training, their titles
and nine negatives from the whole corpus, laid out in sub-batches of like lengths. No model. Run
from the root of the repository::

    python tests/benchmarks/epoch.py sets/news --title-tokens 24 --body-tokens 512
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.reader import ShardSet
from shards.stream import Stream, prefetch
from shards.tokens import TokenColumn
from trainer.tasks.post_train.pairs import PostTrainData
from trainer.tasks.post_train.task import PostTrainConfig, PostTrainDataConfig
from trainer.tasks.sources import Sources


def main() -> None:
    """Stream one epoch, with every row counted, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("set", help="an article set with a token column")
    parser.add_argument("--title-tokens", type=int, default=24)
    parser.add_argument("--body-tokens", type=int, default=512)
    parser.add_argument("--global-batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    articles = ShardSet.open(options.set)
    tokens = TokenColumn.open(articles)
    config = PostTrainDataConfig(
        articles=options.set,
        max_title_tokens=options.title_tokens,
        max_body_tokens=options.body_tokens,
    )
    data = PostTrainData(PostTrainConfig(data=config), Sources(articles, tokens))
    stream = Stream(data.order, options.global_batch)
    batches = -(-articles.num_rows // options.global_batch)
    seen = np.zeros(articles.num_rows, dtype=np.int64)
    padding = []

    def collate(batch):
        return batch, data.collate(batch)

    with prefetch(stream, collate, workers=options.workers) as made:
        for number, (batch, arrays) in zip(range(batches), made, strict=False):
            if number == 0:
                print(f"first batch after {time.perf_counter() - started:.2f} s", flush=True)
                started = time.perf_counter()
            np.add.at(seen, batch.rows[batch.epochs == 0], 1)
            padding.append(float(arrays["padding"]))
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{articles.num_rows:,} articles in {batches:,} batches of {options.global_batch}: "
        f"{took:.0f} s, {batches / took:,.0f} batches/s; each article once: "
        f"{bool((seen == 1).all())}; padding {100 * np.mean(padding):.1f}%; peak memory of the "
        f"process {peak:,.0f} MiB, mapped pages of the column included"
    )


if __name__ == "__main__":
    main()
