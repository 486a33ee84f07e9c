"""What stored teachers cost a student: a step with M = 0, 1, 4, 16 of them, with four live ones;
memory; reading.

    python tests/benchmarks/teachers.py
    TNR_TEST_DATA=DATA TNR_TEST_ENCODERS=ENCODERS python tests/benchmarks/teachers.py

One step: making the batch (reading what the teachers say, and not ahead of the training as in a
run), forward, backward, optimizer. A one-layer student, a batch of 32 bodies of up to 512 tokens
with nine negatives each, titles of up to 24, as the recipe ``post_train_distill`` has it, without
dropout of attention weights (which makes long texts twice as slow on a CPU); the step without
teachers is that of the same student and data. The variants take turns, and every round gives one
ratio. Encoder: all-MiniLM-L6-v2 of ``TNR_TEST_ENCODERS``, or a random one of its size. Needs two
quiet cores and about 8 GiB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from teacher_sets import (
    copy_columns,
    export_teacher,
    identity_of,
    large_logits,
    large_set,
    other_identity,
    settings,
    small_set,
    teacher_config,
)

from shards.reader import ShardSet
from shards.stream import Stream
from trainer.engine.optimizer import build_optimizer
from trainer.recipes.load import load_config
from trainer.tasks.build import build
from trainer.teacher_server.cells import Target, stored_bytes
from trainer.teacher_server.fill import FillRequest, fill
from trainer.teacher_server.kinds.logits import StoredLogits
from trainer.teacher_server.kinds.text import StoredTextSignals, TextVectors
from trainer.teacher_server.signals import TextRows

BATCH, NEGATIVES, WIDTH = 32, 9, 256
PARTS = ("steps", "reading", "memory")
STORED = (1, 4, 16)
LIVE = 4


class Student:
    """A student with its data and optimizer, that takes one step after another."""

    def __init__(
        self,
        articles: ShardSet,
        run: Path,
        backbone: str | None,
        teachers: Sequence[str] = (),
        source: str = "stored",
    ) -> None:
        words = settings(articles, run, backbone, 1)
        words += ["--optimizer.lr", "1e-5", "--optimizer.backbone_lr", "1e-6"]
        words += ["--model.trainable_layers", "2", "--model.backbone.attention_dropout", "0"]
        task = "post_train"
        if teachers:
            task = "post_train_distill"
            words += ["--teachers.models", *teachers, "--teachers.source", source]
        torch.manual_seed(0)
        config = load_config(task, words)
        built = build(config)
        self.module, self.data = built.module.train(), built.data
        self.optimizer = build_optimizer(self.module, config.optimizer)
        self.stream = Stream(self.data.order, BATCH)

    def step(self) -> None:
        """One optimizer step, the making of its batch included."""
        batch = self.data.collate(next(self.stream)).batch
        self.module(batch)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Median and extremes."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def steps(students: dict[str, Student], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of every student, in turns; all read the same batches in the same rounds."""
    for student in students.values():
        student.step()
    times: dict[str, list[float]] = {name: [] for name in students}
    for number in range(rounds):
        names = list(students)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(seconds(students[name].step))
    return times


def reading(articles: ShardSet, teachers: Sequence[str], batches: int) -> None:
    """Microseconds a stored row of a batch's vectors, pages in the page cache."""
    rng = np.random.default_rng(1)
    asked = []
    for _ in range(batches):
        near = rng.integers(0, articles.num_rows - 4 * 4096)
        bodies = near + rng.choice(4 * 4096, BATCH, replace=False)
        titles = np.concatenate([bodies, rng.integers(0, articles.num_rows, BATCH * NEGATIVES)])
        asked.append({"title": np.unique(titles), "body": bodies})
    rows = sum(len(of) for one in asked for of in one.values())
    first: list[float] = []
    again: list[float] = []
    StoredTextSignals(articles, teachers, "float16", "fp32").read(asked[0])
    warm = StoredTextSignals(articles, teachers, "float16", "fp32")
    for one in asked:
        warm.read(one)
    for _ in range(5):
        opened = seconds(lambda: StoredTextSignals(articles, teachers, "float16", "fp32"))
        signals = StoredTextSignals(articles, teachers, "float16", "fp32")
        for times in (first, again):
            took = seconds(lambda s=signals: [s.read(one) for one in asked])
            times.append(1e6 * took / rows)
    count = len(teachers)
    print(
        f"reading M = {count} of {articles.num_rows:,} articles in {len(articles.shards)} shards, "
        f"{rows / batches:.0f} rows a batch, opened in {opened:.1f} s\n"
        f"  microseconds a row and teacher, pages mapped: "
        f"{spread([t / count for t in again], '.2f')}, "
        f"at the first touch {spread([t / count for t in first], '.2f')} (bar 2)\n"
        f"  microseconds an article, all {count} teachers: {spread(again, '.2f')}, "
        f"at the first touch {spread(first, '.2f')}"
    )
    reading_logits(articles, teachers, asked)


def reading_logits(
    articles: ShardSet, teachers: Sequence[str], asked: Sequence[dict[str, np.ndarray]]
) -> None:
    """The same batches of a student without the embedding loss, which run over the end of an epoch:
    from vectors and from stored logits, in turns, pages in the page cache."""
    logits = large_logits(articles, teachers, NEGATIVES)
    sources = (
        StoredTextSignals(articles, teachers, "float16", "fp32"),
        StoredLogits(logits, with_vectors=False),
    )
    epochs = np.repeat([0, 1], [BATCH - 8, 8])
    vectors: list[float] = []
    scores: list[float] = []
    for number in range(6):
        for source, times in zip(sources, (vectors, scores), strict=True):
            took = seconds(lambda s=source: [s.read(one, epochs_B=epochs) for one in asked])
            if number:  # the first touches the pages
                times.append(1e6 * took / len(asked))
    ratios = [both / own for both, own in zip(vectors, scores, strict=True)]
    text = Target(articles, TextVectors.name, identity_of(teachers[0], articles))
    drawn = logits.column(logits.teachers[0], 0)
    target = drawn.target
    drawn.encode(None, drawn.rows(0))
    filled = [seconds(lambda s=shard: drawn.encode(None, drawn.rows(s))) for shard in range(1, 6)]
    epoch_s = [each * articles.num_shards for each in filled]
    print(
        f"stored logits: {spread(scores, '.0f')} microseconds a batch of {BATCH}, M = "
        f"{len(teachers)}, vectors {spread(vectors, '.0f')}: {spread(ratios, '.1f')} times less\n"
        f"  MB a teacher: vectors {stored_bytes(text) / 1e6:,.1f}, logits of an epoch "
        f"{stored_bytes(target) / 1e6:,.1f}, computed in {spread(epoch_s, '.0f')} s (from 5 shards)"
    )


def memory_of_this_process(small: str, large: str, run: str, backbone: str, teachers: list[str]):
    """Train a few steps, with the large set's teachers read beside, and print the memory."""
    articles = ShardSet.open(small)
    student = Student(articles, Path(run), backbone or None, teachers)
    huge = ShardSet.open(large, check_files=False)
    signals = StoredTextSignals(huge, teachers, "float16", "fp32") if teachers else None
    rng = np.random.default_rng(2)
    for _ in range(4):
        student.step()
        for _ in range(2 if signals else 0):
            titles = rng.integers(0, huge.num_rows, BATCH * (1 + NEGATIVES))
            signals.read(TextRows(titles, titles[:BATCH], np.zeros(BATCH, np.int64)))
    status = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith("Rss")}
    print(found["RssAnon"] / 1024, found["RssFile"] / 1024)


def memory(
    small: Path,
    large: Path,
    run: Path,
    backbone: str | None,
    teachers: Sequence[str],
    rounds: int,
) -> None:
    """Memory of student processes of their own, without teachers and with all of them, in turns."""
    counts = (0, len(teachers))
    own: dict[int, list[float]] = {count: [] for count in counts}
    mapped: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            words = [str(small), str(large), str(run), backbone or "", *teachers[:count]]
            done = subprocess.run(
                [sys.executable, __file__, "--memory-of", *words],
                capture_output=True,
                text=True,
                check=True,
            )
            anonymous, files = (float(word) for word in done.stdout.split()[-2:])
            own[count].append(anonymous)
            mapped[count].append(files)
    none, full = (own[count] for count in counts)
    batch = len(teachers) * BATCH * (2 + NEGATIVES) * WIDTH * (2 + 4) / 2**20
    # Each projection has a weight and a bias, their gradients, and Adam's two moments.
    projections = len(teachers) * WIDTH * (WIDTH + 1) * 4 * 4 / 2**20
    pairs = list(zip(full, none, strict=True))
    print(
        f"memory of a student process, medians of {rounds} in turns (extremes): "
        f"{spread(none, ',.0f')} MiB of its own without teachers, {spread(full, ',.0f')} with "
        f"M = {len(teachers)} stored: {spread([f / n for f, n in pairs])}\n"
        f"  without the batch's own vectors ({batch:.0f} MiB, float16 and float32): "
        f"{spread([(f - batch) / n for f, n in pairs])} (bar 1.05); {projections:.0f} MiB are the "
        f"projections with their gradients and Adam\n"
        f"  mapped pages of files, in the page cache once a node: "
        f"{' and '.join(spread(mapped[count], ',.0f') for count in counts)} MiB"
    )


def main() -> None:
    """Make sets and teachers, and print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=320, help="of the set that is trained on")
    parser.add_argument("--large", type=int, default=2_000_000, help="rows of the set that is read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--memory-of", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        small, large, run, backbone, *teachers = options.memory_of
        return memory_of_this_process(small, large, run, backbone, teachers)
    encoders = os.environ.get("TNR_TEST_ENCODERS")
    backbone = str(Path(encoders) / "all-MiniLM-L6-v2") if encoders else None
    with tempfile.TemporaryDirectory() as made:
        measure(Path(made), backbone, options)


def measure(folder: Path, backbone: str | None, options: argparse.Namespace) -> None:
    """What was asked for, in a folder of its own."""
    parts = options.parts
    articles = small_set(folder / "small", options.articles, backbone)
    config = teacher_config(articles, folder, backbone)
    live = [export_teacher(config, folder / f"teachers/{m}", m) for m in range(LIVE)]
    teachers = live + [
        other_identity(live[0], folder / f"teachers/{m}", m) for m in range(LIVE, max(STORED))
    ]
    request = FillRequest(articles=articles, impressions=None)
    cache_s = seconds(lambda: fill(live[:1], request, lambda line: None)) / articles.num_rows
    copy_columns(articles, live[0], teachers[1:])
    if "steps" in parts:
        students = {"no teacher": Student(articles, folder / "run", backbone)}
        for count in STORED:
            name = f"M = {count} stored"
            students[name] = Student(articles, folder / "run", backbone, teachers[:count])
        students[f"M = {LIVE} live"] = Student(articles, folder / "run", backbone, live, "live")
        report(steps(students, options.rounds), cache_s, options.rounds)
        del students
    large = large_set(folder / "large", options.large, teachers, WIDTH)
    if "reading" in parts:
        reading(large, teachers[:LIVE], 40)
    if "memory" in parts:
        memory(articles.path, large.path, folder / "run", backbone, teachers, options.rounds)


def report(times: dict[str, list[float]], cache_s: float, rounds: int) -> None:
    """Seconds a step, ratios by round, and after how many epochs caching has paid for itself."""
    print(f"a step of {BATCH} samples, medians of {rounds} in turns (extremes)")
    base = times["no teacher"]
    for name, of in times.items():
        ratios = [own / none for own, none in zip(of, base, strict=True)]
        print(f"  {name:<14} {spread(of)} s, over no teacher {spread(ratios)}")
    stored = times[f"M = {LIVE} stored"]
    ratios = [own / read for own, read in zip(times[f"M = {LIVE} live"], stored, strict=True)]
    print(f"  M = {LIVE} live over stored: {spread(ratios, '.1f')} (bar 8)")
    saved = statistics.median(times[f"M = {LIVE} live"]) - statistics.median(stored)
    print(
        f"  caching takes {1 / cache_s:.1f} articles/s a teacher, {LIVE * cache_s * 1e3:.0f} ms an "
        f"article for M = {LIVE}; an epoch with live teachers {saved / BATCH * 1e3:.0f} ms more: "
        f"paid for after {LIVE * cache_s * BATCH / saved:.2f} epochs"
    )


if __name__ == "__main__":
    main()
