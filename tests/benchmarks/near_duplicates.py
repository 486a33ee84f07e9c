"""How many planted near-duplicates are found, at which resemblance, and what signatures cost.

    python tests/benchmarks/near_duplicates.py --articles /tmp/world/articles.jsonl

Copies of the first 2,000 articles have a share of their words replaced, dropped or added.
Resemblance is the Jaccard index of the sets of runs of four words, counted in plain Python. Times
are of the processor.
"""

import argparse
import json
import random
import re
import statistics
import time
from itertools import islice
from pathlib import Path

import numpy as np

from shards.near_duplicates import near_duplicates, signatures

SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.08, 0.15)
PLANTED = 2000


def edited(rng: random.Random, text: str, share: float) -> str:
    """The text with a share of its words changed."""
    words = text.split(" ")
    for _ in range(max(1, round(len(words) * share))):
        place = rng.randrange(len(words))
        kind = rng.randrange(3)
        if kind == 0:
            words[place] = f"changed{rng.randrange(1000)}"
        elif kind == 1 and len(words) > 2:
            del words[place]
        else:
            words.insert(place, f"added{rng.randrange(1000)}")
    return " ".join(words)


def runs(text: str) -> set[tuple[str, ...]]:
    """All runs of four words; the last ones are shorter."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[place : place + 4]) for place in range(len(words))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--articles", type=Path, required=True, help="JSON lines")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with arguments.articles.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, arguments.count)]
    texts = [f"{row['title']}\0{row['body']}" for row in rows]

    costs_us = []
    for _ in range(5):
        start_s = time.process_time()
        signs = np.concatenate(
            [signatures(texts[place : place + 2000]) for place in range(0, len(texts), 2000)]
        )
        costs_us.append((time.process_time() - start_s) / len(texts) * 1e6)
    start_s = time.process_time()
    found = near_duplicates(signs)
    count_s = time.process_time() - start_s
    print(
        f"{len(texts):,} articles: signatures {statistics.median(costs_us):.0f} us an article"
        f" ({min(costs_us):.0f} to {max(costs_us):.0f}), counting {count_s:.2f} s; {found.sum()}"
        " of them taken for near-duplicates of each other"
    )
    rng = random.Random(arguments.seed)
    originals = texts[:PLANTED]
    sets = [runs(text) for text in originals]
    for share in SHARES:
        copies = [edited(rng, text, share) for text in originals]
        alike = [
            len(one & other) / len(one | other)
            for one, other in zip(sets, map(runs, copies), strict=True)
        ]
        found = near_duplicates(signatures(originals + copies))[len(originals) :]
        print(
            f"{100 * share:4.1f} % of words edited: resemblance {statistics.mean(alike):.2f}"
            f" ({min(alike):.2f} to {max(alike):.2f}), found {100 * found.mean():.1f} %"
        )


if __name__ == "__main__":
    main()
