"""The four tasks at two commits: the largest difference of their losses and final weights.

    python tests/benchmarks/same_numbers.py 962f77d HEAD

Each commit is checked out beside the other and runs in processes of its own. The first one makes
the data, the teachers and their columns; the second one reads these, so that sets, columns and
exports of the first are shown to be readable, and goes on from a checkpoint that the first one
wrote. Cases: every task on one process, on two, with ZeRO-2 and ZeRO-3, the distillations with
stored and live teachers, and finetuning over frozen states. Two runs of one commit differ by
nothing, which ``--case`` with one commit given twice shows. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STEPS = 6

TINY = {
    "model.backbone.num_layers": 2,
    "model.backbone.hidden_size": 32,
    "model.backbone.num_heads": 2,
    "model.backbone.intermediate_size": 64,
    "model.backbone.max_positions": 64,
    "model.news_dim": 24,
    "model.query_dim": 16,
    "data.max_title_tokens": 12,
    "data.max_body_tokens": 24,
    "run.global_batch": 16,
    "run.micro_batch": 4,
    "run.log_every": 1,
    "run.max_steps": STEPS,
    "run.copies.rule": "none",
}
STORED = {"teachers.source": "stored"}
LIVE = {"teachers.source": "live"}
FROZEN = {"model.trainable_layers": 1, "model.frozen_states": "float32"}
ENGINES: Mapping[str, tuple[int, Mapping[str, object]]] = {
    "1 process": (1, {}),
    "2 processes": (2, {}),
    "ZeRO-2": (2, {"run.deepspeed": "zero2"}),
    "ZeRO-3": (2, {"run.deepspeed": "zero3"}),
}
TASKS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "post_train": ("post_train", {}),
    "finetune": ("finetune", {}),
    "finetune, frozen states": ("finetune", FROZEN),
    "post_train_distill, stored": ("post_train_distill", STORED),
    "post_train_distill, live": ("post_train_distill", LIVE),
    "finetune_distill, stored": ("finetune_distill", STORED),
    "finetune_distill, live": ("finetune_distill", LIVE),
}


class Commit:
    """A checkout of one commit, and the commands that run there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        words = ["git", "worktree", "add", "--detach", "--quiet", str(folder), name]
        subprocess.run(words, cwd=ROOT, check=True)

    def tnr(self, *words: object, processes: int = 1) -> None:
        """Run a command of this commit; its output is shown where it fails."""
        start = [sys.executable, "-m"]
        if processes > 1:
            start += [
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
                "-m",
            ]
        done = subprocess.run(
            [*start, "trainer.cli.main", *map(str, words)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{self.name}: tnr {' '.join(map(str, words))}\n{done.stdout}{done.stderr}")

    def train(self, data: Path, run: Path, case: str, engine: str, **more: object) -> None:
        """Train one case."""
        task, given = TASKS[case]
        processes, settings = ENGINES[engine]
        changes = {name.replace("__", "."): value for name, value in more.items()}
        places = {"data.articles": data / "articles", "run.dir": run}
        dotted = {**TINY, **places, **given, **settings, **changes}
        words = [word for name, value in dotted.items() for word in (f"--{name}", value)]
        if task.startswith("finetune"):
            words += ["--data.clicks", data / "clicks", "--data.history_length", 8]
        if task.endswith("distill"):
            words += ["--teachers.models", *teachers(data, task.removesuffix("_distill"))]
        self.tnr("train", task, *words, processes=processes)

    def remove(self) -> None:
        """Take the checkout away."""
        words = ["git", "worktree", "remove", "--force", str(self.folder)]
        subprocess.run(words, cwd=ROOT, check=True)


def teachers(data: Path, task: str) -> list[Path]:
    """Folders of the two teachers that were trained by a task."""
    return [data / f"teacher-{task}-{seed}" / "export" for seed in (1, 2)]


def make_data(commit: Commit, data: Path) -> None:
    """Sets, a tokenizer, two teachers of each stage, and what they say."""
    world, articles, clicks = data / "world", data / "articles", data / "clicks"
    counts = ["--articles", 400, "--users", 60, "--train-impressions", 200]
    commit.tnr("shards", "synthesize", "--out", world, *counts, "--dev-impressions", 20)
    shard = ["--samples-per-shard", 100]
    commit.tnr("shards", "build", "--articles", world / "articles.jsonl", "--out", articles, *shard)
    log = ["--clicks", world / "train" / "behaviors.tsv", "--article-set", articles]
    commit.tnr("shards", "build", *log, "--out", clicks, *shard)
    tokenizer = data / "tokenizer"
    commit.tnr("shards", "train-tokenizer", articles, "--out", tokenizer, "--vocab-size", 1000)
    commit.tnr("shards", "tokenize", articles, "--tokenizer", tokenizer, "--body-tokens", 24)
    for stage, task in ((1, "post_train"), (2, "finetune")):
        models = teachers(data, task)
        for seed, model in enumerate(models, 1):
            commit.train(data, model.parent, task, "1 process", run__seed=seed)
        sets = ["--articles", articles, *(["--clicks", clicks] if stage == 2 else [])]
        commit.tnr("teachers", "cache", "--stage", stage, *sets, "--models", *models)


def losses(run: Path) -> dict[int, float]:
    """Step to loss."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {one["step"]: one["train/loss"] for one in records if "train/loss" in one}


def weights(run: Path) -> dict[str, np.ndarray]:
    """Every tensor of a run's export."""
    found = sorted((run / "export").rglob("*.safetensors"))
    return {
        f"{file.relative_to(run)}: {name}": tensor
        for file in found
        for name, tensor in load_file(file).items()
    }


def difference(before: Mapping, after: Mapping) -> float:
    """The largest absolute difference of two mappings of numbers; infinity where keys differ."""
    if not before or before.keys() != after.keys():
        return float("inf")
    return max(float(np.abs(np.subtract(before[key], after[key])).max()) for key in before)


def compare(case: str, engine: str, runs: Sequence[Path]) -> bool:
    """Print a line; whether nothing differs."""
    before, after = runs
    by_loss = difference(losses(before), losses(after))
    by_weight = difference(weights(before), weights(after))
    print(f"{case:<28}{engine:<24}{by_loss:>10.3g}{by_weight:>10.3g}", flush=True)
    return by_loss == by_weight == 0.0


def main() -> int:
    """Run every case at both commits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--case", default="", help="only cases whose name holds this text")
    parser.add_argument("--engine", default="", help="likewise, of engines")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tnr-same-numbers-") as place:
        folder = Path(place)
        commits = [Commit(name, folder / f"commit-{n}") for n, name in enumerate(words.commits)]
        try:
            make_data(commits[0], folder / "data")
            print(f"{'largest difference of':<52}{'losses':>10}{'weights':>10}")
            return 0 if all(run_cases(commits, folder, words.case, words.engine)) else 1
        finally:
            for commit in commits:
                commit.remove()


def run_cases(commits: Sequence[Commit], folder: Path, only: str, only_engine: str) -> list[bool]:
    """Whether nothing differs, case by case."""
    data, same = folder / "data", []
    for case in (name for name in TASKS if only in name):
        for engine in (name for name in ENGINES if only_engine in name):
            runs = [folder / "runs" / f"{case} {engine} {n}" for n in range(len(commits))]
            for commit, run in zip(commits, runs, strict=True):
                commit.train(data, run, case, engine)
            same.append(compare(case, engine, runs))
        half = folder / "runs" / f"{case} resumed"
        commits[0].train(data, half, case, "1 process", run__checkpoint_every=STEPS // 2)
        keep_half(half)
        commits[1].train(data, half, case, "1 process", run__checkpoint_every=STEPS // 2)
        whole = folder / "runs" / f"{case} whole"
        commits[0].train(data, whole, case, "1 process", run__checkpoint_every=STEPS // 2)
        same.append(compare(case, "resumed by the second", [whole, half]))
    return same


def keep_half(run: Path) -> None:
    """Make a finished run one that was killed after half of its steps."""
    newest = max((run / "checkpoints").glob("step_*"))
    shutil.rmtree(newest)
    shutil.rmtree(run / "export")


if __name__ == "__main__":
    sys.exit(main())
