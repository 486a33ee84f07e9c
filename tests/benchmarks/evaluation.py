"""Evaluation at MIND's size: metrics against the published procedure, a whole dev set, a test set.

Synthetic impressions with MIND's numbers: candidates and history lengths as in its dev set, users
with one history each. Parts (all of them, where none is named)::

    python tests/benchmarks/evaluation.py                  # MIND's size, about half an hour
    python tests/benchmarks/evaluation.py metrics --impressions 20000

- ``metrics``: four numbers of given scores, ours against one impression after another: AUC by
  scikit-learn's ``roc_auc_score``, MRR and nDCG by NumPy, as MIND's procedure does it;
- ``dev``: given news vectors and a user encoder, everything that ``tnr evaluate`` does after
  encoding the articles, in a process of its own: seconds and peak memory;
- ``test``: the same for ``tnr predict`` on a set without labels, then ``tnr score`` of its file.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from shards.clicks import write_click_column
from shards.ragged import offsets_from_lengths, ranges
from shards.writer import ShardWriter

ROOT = Path(__file__).parents[2]
DEV_IMPRESSIONS, TEST_IMPRESSIONS = 376_471, 2_370_727
NEWS, WIDTH, HISTORY = 72_023, 256, 50
IMPRESSIONS_A_USER = 376_471 / 255_990
CATEGORIES = 18
MADE_AT_ONCE = 376_471


class Log(NamedTuple):
    """Synthetic impressions."""

    sizes: np.ndarray
    candidates: np.ndarray
    labels: np.ndarray
    users: np.ndarray
    history_offsets: np.ndarray
    history: np.ndarray


def lengths(rng: np.random.Generator, num: int, median: float, mean: float) -> np.ndarray:
    """Log-normal lengths with this median and mean (before rounding)."""
    sigma = math.sqrt(2 * math.log(mean / median))
    return rng.lognormal(math.log(median), sigma, num).astype(np.int64)


def make_log(num: int, seed: int = 0) -> Log:
    """Impressions with MIND's candidates (mean 37, median 24, at most 299), clicks (28% have more
    than one) and histories (mean 33, median 19, at most 801, 2.2% none)."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(lengths(rng, num, 24, 37.4), 2, 299)
    offsets = offsets_from_lengths(sizes)
    candidates = np.minimum(rng.pareto(0.8, offsets[-1]) * 40, NEWS - 1).astype(np.int32)
    clicks = np.minimum(np.where(rng.random(num) < 0.28, 1 + rng.geometric(0.5, num), 1), sizes - 1)
    owner = np.repeat(np.arange(num), sizes)
    # The first places of a random order inside each impression are its clicks.
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    labels = np.zeros(len(owner), dtype=np.uint8)
    labels[shuffled[ranges(offsets[:-1], clicks)]] = 1
    num_users = max(int(num / IMPRESSIONS_A_USER), 1)
    users = rng.permutation(
        np.concatenate([np.arange(num_users), rng.integers(0, num_users, num - num_users)])
    )
    long = np.clip(lengths(rng, num_users, 19, 32.9), 1, 801)
    long[rng.random(num_users) < 0.022] = 0
    history_offsets = offsets_from_lengths(long)
    history = np.minimum(rng.pareto(0.8, history_offsets[-1]) * 40, NEWS - 1).astype(np.int32)
    return Log(sizes, candidates, labels, users, history_offsets, history)


def published_procedure(
    scores: np.ndarray, labels: np.ndarray, offsets: np.ndarray
) -> tuple[float, ...]:
    """MIND's four numbers, one impression after another."""
    from sklearn.metrics import roc_auc_score

    def dcg(label: np.ndarray, score: np.ndarray, k: int) -> float:
        best = np.argsort(score)[::-1]
        gains = 2 ** np.take(label, best[:k]).astype(float) - 1
        return float(np.sum(gains / np.log2(np.arange(len(gains)) + 2)))

    def ndcg(label: np.ndarray, score: np.ndarray, k: int) -> float:
        return dcg(label, score, k) / dcg(label, label, k)

    def mrr(label: np.ndarray, score: np.ndarray) -> float:
        clicked = np.take(label, np.argsort(score)[::-1])
        return float(np.sum(clicked / (np.arange(len(clicked)) + 1)) / np.sum(clicked))

    found = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        label, score = labels[start:stop], scores[start:stop]
        auc = roc_auc_score(label, score)
        found.append((auc, mrr(label, score), ndcg(label, score, 5), ndcg(label, score, 10)))
    return tuple(np.mean(found, axis=0).tolist())


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def bench_metrics(num: int, repeats: int, reference_repeats: int) -> None:
    """Ours against the published procedure, with the same scores."""
    from trainer.evaluate.metrics import ranking_metrics

    log = make_log(num)
    offsets = offsets_from_lengths(log.sizes)
    scores = np.random.default_rng(1).random(len(log.labels)) + 0.2 * log.labels
    ours = [timed(lambda: ranking_metrics(scores, log.labels, offsets)) for _ in range(repeats + 1)]
    seconds = [took for took, _ in ours[1:]]
    print(
        f"metrics of {num:,} impressions, {len(scores):,} candidates, {int(log.labels.sum()):,} "
        f"clicks\n  ours: {statistics.median(seconds):.3f} s "
        f"({min(seconds):.3f} to {max(seconds):.3f}, {repeats} times)",
        flush=True,
    )
    theirs = [
        timed(lambda: published_procedure(scores, log.labels, offsets))
        for _ in range(reference_repeats)
    ]
    if not theirs:
        return
    slow = statistics.median(took for took, _ in theirs)
    found = ours[0][1].to_dict()
    apart = max(abs(a - b) for a, b in zip(found.values(), theirs[0][1], strict=True))
    print(
        f"  one impression after another: {slow:.1f} s ({reference_repeats} times)\n"
        f"  {slow / statistics.median(seconds):,.0f} times faster; "
        f"{', '.join(f'{name} {value:.6f}' for name, value in found.items())}, "
        f"at most {apart:.1e} apart",
        flush=True,
    )


def write_sets(folder: Path, num: int, labelled: bool) -> None:
    """An article set and an impression set under ``folder``, and the articles' vectors."""
    with ShardWriter(folder / "articles", "articles") as writer:
        for row in range(NEWS):
            category = f"category-{row % CATEGORIES:02d}"
            writer.add({"id": f"N{row}", "title": "", "body": "", "category": category})
        articles = writer.finish()
    with ShardWriter(
        folder / "clicks",
        "impressions",
        source={"labelled": labelled},
        articles_fingerprint=articles.fingerprint,
    ) as writer:
        for sample in samples(num, labelled):
            writer.add(sample)
        impressions = writer.finish()
    write_click_column(impressions)
    vectors = np.random.default_rng(2).normal(size=(NEWS, WIDTH)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)


def samples(num: int, labelled: bool) -> Iterator[dict[str, Any]]:
    """Impressions as shards hold them, made some at a time: users come again among those alone."""
    for begin in range(0, num, MADE_AT_ONCE):
        log = make_log(min(MADE_AT_ONCE, num - begin), seed=begin)
        offsets = offsets_from_lengths(log.sizes)
        for row, user in enumerate(log.users.tolist()):
            shown = slice(offsets[row], offsets[row + 1])
            read = slice(log.history_offsets[user], log.history_offsets[user + 1])
            sample = {
                "id": str(begin + row + 1),
                "user": f"U{begin + user}",
                "time": f"2019-11-15T{row % 24:02d}:00:00",
                "history": log.history[read].tolist(),
                "candidates": log.candidates[shown].tolist(),
            }
            yield sample | ({"clicks": log.labels[shown].tolist()} if labelled else {})


def make_model() -> Any:
    """A recommender whose news encoder is not used."""
    import torch

    from trainer.config.schema import BackboneConfig, ModelConfig
    from trainer.models.build import build_recommender

    torch.manual_seed(0)
    backbone = BackboneConfig(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16)
    config = ModelConfig(backbone=backbone, news_dim=WIDTH)
    return build_recommender(config, vocab_size=30, pad_id=0).eval()


def child_dev(folder: Path) -> dict[str, float]:
    """What `tnr evaluate` does once articles are encoded."""
    from trainer.evaluate.evaluate import EvaluateOptions, Evaluation, make_record
    from trainer.evaluate.pairs import TrainingLog, open_click_log
    from trainer.evaluate.sharded import measure

    model, vectors = make_model(), np.load(folder / "vectors.npy")
    begin = time.perf_counter()
    log = open_click_log(folder / "articles", folder / "clicks")
    scored, metrics = timed(lambda: measure(model, vectors, log.clicks, history_length=HISTORY))
    train = TrainingLog(log.clicks, log.rows())
    segments, record = timed(lambda: make_record("dev", metrics, log, EvaluateOptions(), train))
    written, _ = timed(lambda: Evaluation(record, metrics, log).write(folder / "dev.json"))
    whole = time.perf_counter() - begin
    return {
        "whole": whole,
        "users, scores, metrics": scored,
        "segments": segments,
        "write": written,
    }


def child_test(folder: Path) -> dict[str, float]:
    """What `tnr predict` does once articles are encoded."""
    from trainer.evaluate.pairs import open_click_log
    from trainer.evaluate.prediction import write_prediction
    from trainer.evaluate.sharded import score_all

    model, vectors = make_model(), np.load(folder / "vectors.npy")
    begin = time.perf_counter()
    log = open_click_log(folder / "articles", folder / "clicks")
    took, scored = timed(lambda: score_all(model, vectors, log.clicks, history_length=HISTORY))
    written, _ = timed(lambda: write_prediction(folder / "prediction.zip", log.ids(), *scored))
    whole = time.perf_counter() - begin
    return {"whole": whole, "users and scores": took, "write and check": written}


def child_score(folder: Path) -> dict[str, float]:
    """`tnr score` of the prediction."""
    from trainer.evaluate.prediction import score_prediction

    took, found = timed(
        lambda: score_prediction(folder / "prediction.zip", folder / "behaviors.tsv")
    )
    print(f"  AUC {found.metrics.auc:.6f}", flush=True)
    return {"whole": took}


def write_behaviors(folder: Path, num: int) -> None:
    """The log with labels, as MIND writes it."""
    with (folder / "behaviors.tsv").open("w") as file:
        for one in samples(num, labelled=True):
            items = zip(one["candidates"], one["clicks"], strict=True)
            shown = " ".join(f"N{row}-{click}" for row, click in items)
            read = " ".join(f"N{row}" for row in one["history"])
            file.write(f"{one['id']}\t{one['user']}\t11/15/2019 8:55:22 AM\t{read}\t{shown}\n")


CHILDREN = {"dev": child_dev, "test": child_test, "score": child_score}


def in_child(part: str, folder: Path) -> None:
    """Run a part in a process of its own and print its seconds and peak memory."""
    command = [sys.executable, __file__, part, "--child", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    print(done.stdout.rstrip(), flush=True)


def run_child(part: str, folder: Path) -> None:
    """The other side of :func:`in_child`."""
    seconds = CHILDREN[part](folder)
    # VmHWM and not ru_maxrss, which a child inherits from its parent.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    whole = seconds.pop("whole")
    parts = ", ".join(f"{name} {took:.1f} s" for name, took in seconds.items())
    print(f"  {part}: {whole:.1f} s, at most {peak:,.0f} MiB" + (f" ({parts})" if parts else ""))


def bench_set(part: str, num: int, repeats: int, scratch: str | None) -> None:
    """A dev set, or a test set with its prediction scored."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        took, _ = timed(lambda: write_sets(folder, num, labelled=part == "dev"))
        print(
            f"{part} set of {num:,} impressions, made in {took:.0f} s; {NEWS:,} articles x {WIDTH}"
        )
        for _ in range(repeats):
            in_child(part, folder)
        if part == "test":
            write_behaviors(folder, num)
            in_child("score", folder)


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help="metrics, dev, test (default: all)")
    parser.add_argument("--impressions", type=int, default=DEV_IMPRESSIONS)
    parser.add_argument("--test-impressions", type=int, default=TEST_IMPRESSIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference-repeats", type=int, default=1)
    parser.add_argument("--scratch", help="folder for the sets (3 GB at MIND's size)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        run_child(options.parts[0], options.child)
        return
    parts = options.parts or ["metrics", "dev", "test"]
    if "metrics" in parts:
        bench_metrics(options.impressions, options.repeats, options.reference_repeats)
    if "dev" in parts:
        bench_set("dev", options.impressions, options.repeats, options.scratch)
    if "test" in parts:
        bench_set("test", options.test_impressions, 1, options.scratch)


if __name__ == "__main__":
    main()
