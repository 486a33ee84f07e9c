"""What checking columns at their first touch costs: opening, the first epoch, the epochs after it.

A set of some 100 MB of token ids and teachers' vectors is read as training reads it, with
``data.check_columns`` and without, round after round in turn, each time with freshly opened
readers; its pages are in memory, so this is the cost in time of the processor. ``--cold`` drops
the pages of the files first (it asks the kernel to; nothing else is touched), and then the disk
counts. At last, gathers of a few rows over thousands of cells that were touched before. Run from
the root of the repository::

    python tests/benchmarks/column_checks.py
    python tests/benchmarks/column_checks.py --cold
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.columns import ColumnReader, ColumnWriter
from shards.manifest import Manifest, ShardInfo, write_manifest
from shards.ragged import offsets_from_lengths
from shards.reader import ShardSet

WIDTH, TEACHERS, A_SHARD, BATCH = 256, 4, 4096, 320
"""Values of a vector, columns of vectors, rows of a cell, articles that a micro-batch names."""


def make_set(folder: Path, rows: int, a_shard: int, teachers: int) -> ShardSet:
    """A manifest without shards, and filled columns beside it."""
    counts = [a_shard] * (rows // a_shard)
    shards = [
        ShardInfo(f"news-{number:06d}.tar", count, 1, f"{number:064x}")
        for number, count in enumerate(counts)
    ]
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest("articles", tuple(shards), ("body", "id", "title")))
    articles = ShardSet.open(folder, check_files=False)
    rng = np.random.default_rng(0)
    for number in range(teachers):
        writer = ColumnWriter(articles, f"vectors-{number}", {"number": number})
        for shard, count in enumerate(counts):
            values = rng.standard_normal((count, WIDTH)).astype(np.float16)
            writer.write(shard, {"title": values, "body": values[::-1]})
    writer = ColumnWriter(articles, "ids", {})
    for shard, count in enumerate(counts):
        tensors = {}
        for name, mean in (("title", 14), ("body", 400)):
            offsets = offsets_from_lengths(rng.poisson(mean, count))
            values = rng.integers(0, 30_000, offsets[-1]).astype(np.uint16)
            tensors |= {f"{name}.values": values, f"{name}.offsets": offsets}
        writer.write(shard, tensors)
    return articles


def open_all(folder: Path, check: bool, teachers: int) -> list[ColumnReader]:
    """Readers as a run opens them."""
    articles = ShardSet.open(folder, check_files=False, check_columns=check)
    names = [f"vectors-{number}" for number in range(teachers)]
    return [ColumnReader.open(articles, name) for name in (*names, "ids")]


def epoch(readers: list[ColumnReader], rng: np.random.Generator) -> float:
    """Seconds of reading every row once, in batches from all over the set."""
    *vectors, ids = readers
    start = time.perf_counter()
    order = rng.permutation(ids.num_rows)
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        for reader in vectors:
            reader.gather("title", rows)
            reader.gather("body", rows)
        ids.gather_ragged("title", rows, first=30)
        ids.gather_ragged("body", rows, first=510)
    return time.perf_counter() - start


def drop_pages(folder: Path) -> None:
    """Let the kernel forget the pages of a folder's files."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spread(values: list[float]) -> str:
    """Median and range in milliseconds."""
    ms = [1000 * value for value in values]
    return f"{statistics.median(ms):8.1f} ms ({min(ms):.1f} to {max(ms):.1f})"


def measure_checks(folder: Path, rounds: int, cold: bool) -> None:
    """Opening, the first and the second epoch, with checks and without."""
    make_set(folder, 12 * A_SHARD, A_SHARD, TEACHERS)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    times: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds + 1):
        for check in (True, False) if number % 2 else (False, True):
            if cold:
                drop_pages(folder)
            rng = np.random.default_rng(number)
            start = time.perf_counter()
            readers = open_all(folder, check, TEACHERS)
            opened = time.perf_counter() - start
            for what, value in (
                ("opening", opened),
                ("first epoch", epoch(readers, rng)),
                ("second epoch", epoch(readers, rng)),
            ):
                if number:  # the first round warms up
                    times.setdefault((what, check), []).append(value)
    print(
        f"{size / 1e6:,.0f} MB of columns, {TEACHERS} teachers, {'cold' if cold else 'in memory'}"
    )
    for what in ("opening", "first epoch", "second epoch"):
        on, off = (times[what, check] for check in (True, False))
        ratio = statistics.median(on) / statistics.median(off)
        print(f"  {what:<13} checked {spread(on)}, not {spread(off)}: {ratio:.2f} times")


def measure_scattered(folder: Path, rounds: int) -> None:
    """Gathers of 32 rows over 2,000 cells that were touched before."""
    make_set(folder, 2000 * 16, 16, 1)
    reader = open_all(folder, True, 1)[0]
    rng = np.random.default_rng(0)
    reader.gather("title", np.arange(reader.num_rows))
    batches = rng.integers(0, reader.num_rows, (500, 32))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for rows in batches:
            reader.gather("title", rows)
        found.append((time.perf_counter() - start) / len(batches))
    print(f"a gather of 32 rows over 2,000 touched cells: {spread(found)}")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cold", action="store_true", help="drop the files' pages before each round"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_checks(Path(folder) / "checks", options.rounds, options.cold)
        if not options.cold:
            measure_scattered(Path(folder) / "scattered", options.rounds)


if __name__ == "__main__":
    main()
