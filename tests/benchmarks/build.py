"""How fast articles become a shard set, and in how much memory.

    python -m trainer.cli.main shards synthesize --out /tmp/world --articles 100000 --users 10 \\
        --train-impressions 10 --dev-impressions 10
    python tests/benchmarks/build.py --articles /tmp/world/articles.jsonl --repeats 5

Every build is a process of its own. The cases are taken in turns, so that a busy minute of the
machine falls on all of them; given are medians and the range. CPU time is of all processes, and
is the figure to go by where others use the machine. Memory is the largest of any process, at a
fifth of the articles and at all of them.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

CASES = {
    "1 process": {"processes": 1},
    "2 processes": {"processes": 2},
    "1 process, near-duplicates": {"processes": 1, "near_duplicates": True},
}


def build_once(source: Path, out: Path, options: str) -> None:
    """In a process of its own: build, and print what it took."""
    from shards.build import build_articles

    start_s = time.perf_counter()
    built = build_articles([source], out, **json.loads(options)).shard_set
    wall_s = time.perf_counter() - start_s
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    mib = max(one.ru_maxrss for one in used) / 1024
    size = sum(file.stat().st_size for file in built.path.iterdir())
    result = {"articles": built.num_rows, "wall_s": wall_s, "cpu_s": cpu_s, "mib": mib}
    print(json.dumps(result | {"bytes": size, "fingerprint": built.fingerprint}))


def measured(source: Path, folder: Path, options: dict) -> dict:
    """Run :func:`build_once` and remove what it built."""
    out = folder / "set"
    words = [str(source), str(out), json.dumps(options)]
    done = subprocess.run(
        [sys.executable, __file__, "--once", *words], check=True, capture_output=True, text=True
    )
    shutil.rmtree(out)
    return json.loads(done.stdout)


def spread(values: list[float], form: str) -> str:
    """Median, least and most."""
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--articles", type=Path, help="JSON lines with ids, titles, bodies")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to build (default: a temporary one)")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        source, out, options = arguments.once
        build_once(Path(source), Path(out), options)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        source = arguments.articles
        fifth = folder / "fifth.jsonl"
        with source.open("rb") as whole, fifth.open("wb") as part:
            count = sum(1 for _ in whole)
            whole.seek(0)
            part.writelines(islice(whole, count // 5))
        results: dict[str, list[dict]] = {name: [] for name in CASES}
        small: dict[str, list[dict]] = {name: [] for name in CASES}
        for _ in range(arguments.repeats):
            for name, options in CASES.items():
                results[name].append(measured(source, folder, options))
                small[name].append(measured(fifth, folder, options))
    finally:
        shutil.rmtree(folder)
    report(results, small)


def report(results: dict[str, list[dict]], small: dict[str, list[dict]]) -> None:
    """Print medians, ranges and ratios."""
    first = results["1 process"][0]
    prints = {run["fingerprint"] for runs in results.values() for run in runs}
    print(
        f"{first['articles']:,} articles, {first['bytes'] / 1e6:,.0f} MB of shards,"
        f" {os.cpu_count()} cores, {len(prints)} fingerprint"
    )
    one = statistics.median(run["wall_s"] for run in results["1 process"])
    for name, runs in results.items():
        rates = [run["articles"] / run["wall_s"] for run in runs]
        cpu_us = [run["cpu_s"] / run["articles"] * 1e6 for run in runs]
        ratio = one / statistics.median(run["wall_s"] for run in runs)
        mib = statistics.median(run["mib"] for run in runs)
        former = statistics.median(run["mib"] for run in small[name])
        more = first["articles"] - small[name][0]["articles"]
        print(
            f"{name}: {spread(rates, ',.0f')} articles/s, {ratio:.2f} times one process;"
            f" CPU {spread(cpu_us, '.0f')} us an article; peak {mib:.0f} MiB"
            f" ({former:.0f} at a fifth: {(mib - former) * 2**20 / more:.0f} bytes an article)"
        )


if __name__ == "__main__":
    main()
