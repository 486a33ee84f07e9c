"""A benchmark at two commits, in turns: each number that it prints, before and after.

    python tests/benchmarks/two_commits.py BEFORE AFTER --rounds 5 loop_overhead --steps 30
    python tests/benchmarks/two_commits.py BEFORE AFTER finetune --parts log --short

Each commit is checked out beside the other, and runs the benchmark of its own tree. Lines that both
print are compared: of every number in them the median over the rounds, and the ratio after / before
with its extremes. A benchmark that measures a peer or a bare loop beside ours prints ratios of its
own: these say more than times where the machine has other work.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from same_numbers import Commit

NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*\.?\d*")
PROGRESS = re.compile(r"(step|order|valid)\b")


def run(commit: Commit, benchmark: str, words: list[str]) -> str:
    """Run a benchmark of a commit; what it printed."""
    done = subprocess.run(
        [sys.executable, f"tests/benchmarks/{benchmark}.py", *words],
        cwd=commit.folder,
        env=os.environ | {"PYTHONPATH": str(commit.folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{commit.name}: {benchmark} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


def numbers(printed: str) -> Iterator[tuple[str, float]]:
    """The numbers of what was printed, each with its line, in which numbers are marked."""
    seen: dict[str, int] = defaultdict(int)
    for line in printed.splitlines():
        if PROGRESS.match(line):
            continue
        text = " ".join(NUMBER.sub("#", line).split())
        seen[text] += 1
        for place, found in enumerate(NUMBER.findall(line)):
            again = f" (line {seen[text]})" if seen[text] > 1 else ""
            yield f"{text}{again} [{place + 1}]", float(found.replace(",", "").rstrip("."))


def main() -> None:
    """Run it, and print what changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("benchmark", help="its name in tests/benchmarks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="options of the benchmark")
    given = parser.parse_args()
    given.words = [word for word in given.words if word != "--"]
    found: list[dict[str, list[float]]] = [defaultdict(list), defaultdict(list)]
    with tempfile.TemporaryDirectory(prefix="tnr-two-commits-") as folder:
        commits = [Commit(name, Path(folder) / str(n)) for n, name in enumerate(given.commits)]
        try:
            for number in range(given.rounds):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                for which in order:
                    for name, value in numbers(run(commits[which], given.benchmark, given.words)):
                        found[which][name].append(value)
        finally:
            for commit in commits:
                commit.remove()
    print(f"{given.benchmark}: {' '.join(given.words)}, medians of {given.rounds} rounds in turns")
    for name, before in found[0].items():
        after = found[1].get(name, [])
        if len(after) != len(before) or not all(before):
            continue
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        if set(ratios) == {1.0}:
            continue  # counts, settings
        said = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        medians = f"{statistics.median(before):>10g} -> {statistics.median(after):<10g}"
        print(f"  {medians} {said:<26} {name}")


if __name__ == "__main__":
    main()
