"""Step time of ZeRO 0 to 3 against torch's DDP: two processes, one thread each, equal losses.

    TNR_TEST_DATA=... TNR_TEST_ENCODERS=... python tests/benchmarks/zero.py

Each way is a run of its own of the same model on the same batches, dropout off. The ways take turns
round by round; a step's time is taken from ``metrics.jsonl``, which gets a line a step. The first
steps of a run are not counted. Losses of all steps are compared with DDP's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from doj import ROOT, make_articles, ratios, settings, spread

WAYS = ("DDP", "zero0", "zero1", "zero2", "zero3")
NOT_COUNTED = 3


def run(way: str, articles: Path, folder: Path, steps: int) -> tuple[float, list[float]]:
    """Median seconds of a step, and the loss of every step."""
    dotted: dict[str, Any] = {
        "run__dir": folder,
        "run__max_steps": steps,
        "run__global_batch": 16,
        "run__micro_batch": 8,
        "run__log_every": 1,
        "run__copies__rule": "none",
        "data__max_body_tokens": 64,
        "data__in_batch_negatives": True,
        "model__backbone__hidden_dropout": 0.0,
        "model__backbone__attention_dropout": 0.0,
    }
    if way != "DDP":
        dotted["run__deepspeed"] = way
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node", "2", "-m", "trainer.cli.main", "train", "post_train",
               *settings(articles, **dotted)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr.strip().splitlines()[-1]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [after["time"] - before["time"] for before, after in pairwise(lines)]
    return statistics.median(times[NOT_COUNTED:]), [line["train/loss"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    worst = dict.fromkeys(WAYS, 0.0)
    with tempfile.TemporaryDirectory() as work:
        articles = make_articles(Path(work), 256)
        for repeat in range(options.repeats):
            expected: list[float] = []
            for way in WAYS:
                folder = Path(work) / f"{way}-{repeat}"
                took, losses = run(way, articles, folder, options.steps)
                seconds[way].append(took)
                expected = expected or losses
                apart = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
                worst[way] = max(worst[way], apart)
    print("all-MiniLM-L6-v2, top 3 layers trained, body 64, global batch 16, 2 processes")
    for way, values in seconds.items():
        took, times = spread(values, 3), spread(ratios(values, seconds["DDP"]))
        print(f"  {way:<6} {took} s a step, {times} x DDP, losses within {worst[way]:.1e}")


if __name__ == "__main__":
    main()
