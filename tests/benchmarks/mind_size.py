"""A synthetic log of MIND's size from its files to a prediction: seconds and memory of every step.

    python tests/benchmarks/mind_size.py --folder /tmp/mind-size

Synthesizes MIND's large parts (``tnr shards synthesize --like mind``), builds articles and clicks,
tokenizes, finetunes a small random model for some steps, evaluates it on dev and predicts the test
part. Every step is a ``tnr`` command in a process of its own; given are the seconds of the clock,
the CPU seconds of all its processes, and the largest memory of any of them. A step whose result is
there from an earlier run says so and is not timed. --scale 0.1 takes a tenth of everything.

The log's shape is printed beside what is published of MIND, and last how much of the click column
two processes hold in common.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.clicks import ClickColumn
from shards.ragged import row_of_value
from shards.reader import ShardSet

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "train impressions": 2_232_748,
    "dev impressions": 376_471,
    "train users": 711_222,
    "train news": 101_527,
    "train clicks": 3_383_656,
    "candidates, mean": 37.4,
    "candidates, median": 24,
    "candidates, p95": 119,
    "candidates, most": 300,
    "history, mean": 32.9,
    "history, median": 19,
    "history, p95": 110,
    "history, longest": 801,
    "history, share over 50": 0.20,
    "history, share empty": 0.022,
    "share with two clicks or more": 0.28,
}
"""MIND's large parts: Wu et al., ACL 2020, and counts of its files."""


@dataclass(frozen=True)
class Step:
    """A command of the walk, and the file that is there once it is done."""

    name: str
    words: list[Any]
    done: Path
    clear: Path | None = None
    """What to remove before it is run, so that it starts afresh."""


def run_step(step: Step, log: Path) -> dict[str, float] | None:
    """Run one ``tnr`` command; return what it took, or None where it was done before.

    Raises:
        SystemExit: If it fails; the end of its output is shown.
    """
    if step.done.exists():
        return None
    if step.clear is not None:
        shutil.rmtree(step.clear, ignore_errors=True)
    words = [sys.executable, "-m", "trainer.cli.main", *map(str, step.words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start_s = time.perf_counter()
    with log.open("ab") as out:
        files = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        child = os.posix_spawn(sys.executable, words, environment, file_actions=files)
        _, status, used = os.wait4(child, 0)
    wall_s = time.perf_counter() - start_s
    if code := os.waitstatus_to_exitcode(status):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{step.name} ended with {code}; the end of {log}:\n{tail}")
    return {
        "wall_s": wall_s,
        "cpu_s": used.ru_utime + used.ru_stime,
        "mib": used.ru_maxrss / 1024,
    }


def walk(options: argparse.Namespace) -> Iterator[Step]:
    """Yield the steps, in order."""
    folder = options.folder
    log, news, processes = folder / "log", folder / "articles", options.processes
    like = ["--like", "mind", "--scale", options.scale, "--processes", processes]
    if options.test_impressions is not None:
        like += ["--test-impressions", options.test_impressions]
    yield Step("synthesize", ["shards", "synthesize", "--out", log, *like], log / "truth.json")
    parts = [log / part for part in ("train", "dev", "test")]
    build = ["shards", "build", "--processes", processes]
    yield Step(
        "build articles", [*build, "--articles", *parts, "--out", news], news / "manifest.json"
    )
    for part in parts:
        words = ["--clicks", part, "--article-set", news, "--out", folder / part.name]
        done = folder / part.name / "manifest.json"
        yield Step(f"build clicks, {part.name}", [*build, *words], done, done.parent)
    tokenizer, marker = folder / "tokenizer", folder / "tokenized"
    train_words = ["shards", "train-tokenizer", news, "--out", tokenizer, "--vocab-size", 8000]
    yield Step("train a tokenizer", train_words, tokenizer)
    lengths = ["--title-tokens", 30, "--body-tokens", 64, "--processes", processes]
    yield Step("tokenize", ["shards", "tokenize", news, "--tokenizer", tokenizer, *lengths], marker)
    yield Step(f"finetune, {options.steps} steps", finetune(options), folder / "run" / "export")
    model = [folder / "run" / "export", "--articles", news, "--clicks"]
    record, prediction = folder / "evaluation.json", folder / "prediction.zip"
    quick = ["--speed-seconds", 0, "--out", record]
    yield Step("evaluate on dev", ["evaluate", *model, folder / "dev", *quick], record)
    yield Step(
        "predict test", ["predict", *model, folder / "test", "--out", prediction], prediction
    )


def finetune(options: argparse.Namespace) -> list[Any]:
    """The command that finetunes a small model with random weights."""
    settings = {
        "data.articles": options.folder / "articles",
        "data.clicks": options.folder / "train",
        "data.max_title_tokens": 30,
        "data.num_negatives": 4,
        "model.backbone.num_layers": 2,
        "model.backbone.hidden_size": 64,
        "model.backbone.intermediate_size": 128,
        "model.news_dim": 64,
        "model.query_dim": 32,
        "run.dir": options.folder / "run",
        "run.global_batch": 32,
        "run.max_steps": options.steps,
        "run.checkpoint_every": options.steps,
    }
    return ["train", "finetune", *(w for key, v in settings.items() for w in (f"--{key}", v))]


def shape(folder: Path) -> dict[str, float]:
    """What of the train and dev sets can be held against what is published, a shard at a time."""
    clicks = ClickColumn.open(ShardSet.open(folder / "train"))
    lengths: dict[str, list[np.ndarray]] = {"history": [], "candidates": []}
    users, more = [], 0
    for shard in range(len(clicks.clicks_per_shard)):
        cell = clicks.reader.cell(shard)
        for name, parts in lengths.items():
            parts.append(np.diff(cell[f"{name}.offsets"]))
        rows = row_of_value(cell["clicked.offsets"], np.flatnonzero(cell["clicked.values"]))
        more += int((np.bincount(rows) >= 2).sum())
        users.append(np.unique(cell["user"]))
    history, candidates = (np.concatenate(parts) for parts in lengths.values())
    with (folder / "log" / "train" / "news.tsv").open("rb") as file:
        num_news = sum(1 for _ in file)
    return {
        "train impressions": clicks.num_impressions,
        "dev impressions": ShardSet.open(folder / "dev").num_rows,
        "train users": len(np.unique(np.concatenate(users))),
        "train news": num_news,
        "train clicks": clicks.num_clicks + clicks.num_left_out,
        "candidates, mean": float(candidates.mean()),
        "candidates, median": float(np.median(candidates)),
        "candidates, p95": float(np.percentile(candidates, 95)),
        "candidates, most": int(candidates.max()),
        "history, mean": float(history.mean()),
        "history, median": float(np.median(history)),
        "history, p95": float(np.percentile(history, 95)),
        "history, longest": int(history.max()),
        "history, share over 50": float((history > 50).mean()),
        "history, share empty": float((history == 0).mean()),
        "share with two clicks or more": more / clicks.num_impressions,
    }


def print_shape(folder: Path, scale: float) -> None:
    """Print the log's shape beside MIND's."""
    print(f"\n{'of the log':<32}{'synthetic':>14}{'MIND':>14}")
    for name, value in shape(folder).items():
        form = ",.0f" if value >= 1000 or float(value).is_integer() else ".3g"
        published = PUBLISHED[name] * (scale if name.startswith(("train", "dev")) else 1)
        print(f"{name:<32}{value:>14{form}}{published:>14{form}}")


def opening(folder: Path) -> None:
    """Time opening the click column, and looking through all of it."""
    start_s = time.perf_counter()
    clicks = ClickColumn.open(ShardSet.open(folder / "train"))
    took: dict[str, float] = {"open": time.perf_counter() - start_s}
    steps: dict[str, Callable[[], object]] = {
        "num_left_out": lambda: clicks.num_left_out,
        "units_with 1,000 articles": lambda: clicks.units_with(np.arange(0, 100_000, 100)),
        "10,000 clicks from all over": lambda: read(clicks, 10_000),
    }
    for name, step in steps.items():
        start_s = time.perf_counter()
        step()
        took[name] = time.perf_counter() - start_s
    print("\nthe click column: " + ", ".join(f"{name} {s:.2f} s" for name, s in took.items()))


def read(clicks: ClickColumn, count: int) -> None:
    """Histories and negatives of clicks taken evenly over the log."""
    units = np.arange(count, dtype=np.int64) * clicks.num_clicks // count
    rows, _ = clicks.click(units)
    clicks.history(rows, 50)
    clicks.sample_negatives(0, units, np.zeros(len(units), dtype=np.int64), 4)


def hold(folder: Path, pipe: Connection) -> None:
    """In a process of its own: map and read the whole train column, then tell its memory."""
    clicks = ClickColumn.open(ShardSet.open(folder / "train"))
    for shard in range(len(clicks.clicks_per_shard)):
        for array in clicks.reader.cell(shard).values():
            np.add.reduce(array.reshape(-1)[:: 4096 // array.itemsize], dtype=np.float64)
    pipe.send("read")
    pipe.recv()
    memory = Path("/proc/self/smaps_rollup").read_text().splitlines()
    names = ("Rss", "Pss", "Pss_File", "Anonymous")
    kib = {line.split(":")[0]: int(line.split()[1]) for line in memory if line.startswith(names)}
    pipe.send({name: kib[name] / 1024 for name in names})
    pipe.recv()


def sharing(folder: Path) -> None:
    """Print what two processes that have read the whole click column hold, together and apart."""
    context = multiprocessing.get_context("spawn")
    for number in (1, 2):
        pipes, children = [], []
        for _ in range(number):
            pipe, end = context.Pipe()
            children.append(context.Process(target=hold, args=(folder, end)))
            children[-1].start()
            pipes.append(pipe)
        for pipe in pipes:
            pipe.recv()
        told = []
        for pipe in pipes:
            pipe.send("tell")
            told.append(pipe.recv())
        for pipe, child in zip(pipes, children, strict=True):
            pipe.send("end")
            child.join()
        size = sum(path.stat().st_size for path in folder.glob("train/columns/clicks-*/*"))
        each = "; ".join(
            f"Rss {one['Rss']:,.0f}, Pss {one['Pss']:,.0f} (of files {one['Pss_File']:,.0f}),"
            f" anonymous {one['Anonymous']:,.0f}"
            for one in told
        )
        print(f"{number} reading all {size / 2**20:,.0f} MiB of the click column, MiB: {each}")


def main() -> None:
    """Walk, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--test-impressions", type=int, help="of the test part (all of MIND's)")
    parser.add_argument("--steps", type=int, default=30, help="of finetuning (%(default)s)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--until", default="", help="the last step to take, by its beginning")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log, times = options.folder / "commands.log", options.folder / "times.jsonl"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.processes} processes")
    print(f"{'step':<28}{'seconds':>10}{'CPU s':>10}{'peak MiB':>10}", flush=True)
    for step in walk(options):
        took = run_step(step, log)
        if took is None:
            print(f"{step.name:<28}{'there':>10}", flush=True)
        else:
            step.done.touch()
            with times.open("a") as file:
                file.write(json.dumps({"step": step.name, **took}) + "\n")
            cells = f"{took['wall_s']:>10,.1f}{took['cpu_s']:>10,.1f}{took['mib']:>10,.0f}"
            print(f"{step.name:<28}{cells}", flush=True)
        if options.until and step.name.startswith(options.until):
            break
    if (options.folder / "train" / "manifest.json").exists():
        print_shape(options.folder, options.scale)
        opening(options.folder)
        sharing(options.folder)


if __name__ == "__main__":
    main()
