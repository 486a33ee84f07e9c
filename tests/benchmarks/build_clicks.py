"""How long a click log takes to become a shard set and a click column, and in how much memory.

    python -m trainer.cli.main shards synthesize --like mind --out /tmp/mind
    python -m trainer.cli.main shards build --articles /tmp/mind/train --out /tmp/news
    python tests/benchmarks/build_clicks.py --clicks /tmp/mind/train/behaviors.tsv \\
        --articles /tmp/news

Every build is a process of its own: with one process and with two, of a fifth of the log and of all
of it; last, one that is killed (SIGKILL) while it reads, while it writes shards and while it writes
the column, and called again each time. CPU time is of all processes (of a killed build, of its
first one alone), and is the figure to go by where others use the machine. Memory is the largest of
any process.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STAGES = {
    "reading": ".building-*/spools/*.spool",
    "writing shards": ".building-*/*.done",
    "writing the column": "columns/*/impressions-*.json",
}
"""What is there more and more of, by what a build is at."""


def command(log: Path, options: argparse.Namespace, out: Path, processes: int) -> list[str]:
    """The words of one build."""
    words = ["shards", "build", "--clicks", log, "--article-set", options.articles, "--out", out]
    words += ["--processes", processes]
    return [sys.executable, "-m", "trainer.cli.main", *map(str, words)]


def build(words: list[str], kill: tuple[Path, str, int] | None = None) -> dict[str, Any]:
    """Build, and say what it took.

    Args:
        words: The command.
        kill: (folder, pattern, number): SIGKILL once so many files are there.
    """
    start_s = time.perf_counter()
    # A killed build's helper warns on standard error of what it has tidied up.
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(
        words,
        stdout=quiet,
        stderr=None if kill is None else quiet,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while kill is not None and child.poll() is None:
        folder, pattern, number = kill
        if sum(1 for _ in folder.glob(pattern)) >= number:
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    expected = 0 if kill is None else -signal.SIGKILL
    if child.returncode != expected:
        raise SystemExit(f"a build ended with {child.returncode}, expected {expected}")
    return {
        "wall_s": time.perf_counter() - start_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "mib": used.ru_maxrss / 1024,
    }


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Size, and the sha256 where one is noted, of what a build has left."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in manifest["shards"]}
    for record in folder.glob("columns/*/impressions-*.json"):
        cell = json.loads(record.read_text())
        shards[record.stem + ".safetensors"] = (cell["bytes"], cell["sha256"])
    return shards


def show(name: str, took: dict[str, Any], count: int) -> None:
    """Print one line."""
    print(
        f"{name:<34}{took['wall_s']:>9,.1f} s{took['cpu_s']:>9,.1f} s CPU"
        f"{took['cpu_s'] / count * 1e6:>7,.0f} us each{took['mib']:>7,.0f} MiB",
        flush=True,
    )


def killed_in_turn(
    options: argparse.Namespace, out: Path, whole: dict[str, tuple[int, str]], count: int
) -> None:
    """Kill a build at half of every stage; see that the last one has the same files."""
    words = command(options.clicks, options, out, 2)
    num_shards = sum(name.endswith(".tar") for name in whole)
    num_chunks = -(-options.clicks.stat().st_size // (8 << 20))
    total: dict[str, float] = {"wall_s": 0.0, "cpu_s": 0.0, "mib": 0.0}
    for stage, pattern in STAGES.items():
        half = max(1, (num_chunks if stage == "reading" else num_shards) // 2)
        took = build(words, (out, pattern, half))
        show(f"killed at {half} files of {stage}", took, count)
        total = {key: total[key] + took[key] for key in total}
    took = build(words)
    show("called again to the end", took, count)
    print(
        f"killed three times: {total['wall_s'] + took['wall_s']:,.1f} s in all, the same shards and"
        f" cells: {contents(out) == whole}"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clicks", type=Path, required=True, help="a behaviors.tsv, not packed")
    parser.add_argument("--articles", type=Path, required=True, help="the set of its news")
    parser.add_argument("--folder", type=Path, help="where to build (default: a temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        fifth, out = folder / "fifth.tsv", folder / "set"
        with options.clicks.open("rb") as log, fifth.open("wb") as part:
            count = sum(1 for _ in log)
            log.seek(0)
            part.writelines(islice(log, count // 5))
        print(f"{count:,} impressions, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        whole: dict[str, tuple[int, str]] = {}
        for processes in (1, 2):
            for log, number in ((fifth, count // 5), (options.clicks, count)):
                took = build(command(log, options, out, processes))
                show(f"{number:,} impressions, {processes} processes", took, number)
                whole = contents(out)
                shutil.rmtree(out)
        killed_in_turn(options, out, whole, count)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
