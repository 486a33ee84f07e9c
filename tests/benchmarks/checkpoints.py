"""How long a checkpoint stops training, how long it takes, and its size, beside DeepSpeed's own.

A BERT of the size of BERT-base (109 M parameters, fp32, Adam) on two processes under ZeRO-2. In
every round: our save in the foreground, our save in the background, and DeepSpeed's
``save_checkpoint``; medians over the rounds. Ours is one copy whole by parameter name, checksummed
and durable (fsync) once published; DeepSpeed's is one file per rank, neither. What the system still
holds in memory is written out (sync) before every save, so that no save pays for another, and after
DeepSpeed's, which is told apart. Run from the root of the repository::

    python tests/benchmarks/checkpoints.py
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import nn
from transformers import BertConfig, BertModel

from trainer.checkpoint.retention import Retention
from trainer.checkpoint.store import CheckpointStore
from trainer.config.schema import OptimizerConfig, TrainConfig
from trainer.engine.callback import Callbacks, Run
from trainer.engine.distributed import Distributed, leave, start
from trainer.engine.saving import Saver
from trainer.engine.session import Session
from trainer.recipes.load import from_settings

FOREGROUND, BACKGROUND, DEEPSPEED = "foreground", "background", "DeepSpeed"


class Task(nn.Module):
    """Weights to save; it is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.model = BertModel(BertConfig())

    def parameter_groups(self, config: OptimizerConfig) -> list[dict[str, Any]]:
        """One group of all parameters."""
        return [{"params": list(self.parameters()), "lr": config.lr, "name": "all"}]


class Bench:
    """The three ways to save one session.

    Args:
        config: Of the run that saves.
        distributed: This process among the others.
        folder: Where checkpoints go; emptied after every save.
    """

    def __init__(self, config: TrainConfig, distributed: Distributed, folder: Path) -> None:
        self._distributed = distributed
        self._folder = folder
        self._session = Session(config, Task(), distributed, None, 1)
        self._store = CheckpointStore(folder / "ours", Retention(newest=1), print)

    def save(self, way: str, background: bool) -> tuple[float, float, float]:
        """Save once.

        Returns:
            Seconds that training waits, seconds until the checkpoint is there (for DeepSpeed's with
            what sync takes after it), bytes.
        """
        self._drain()
        began = time.perf_counter()
        if way == DEEPSPEED:
            engine: Any = self._session.backend.module
            engine.save_checkpoint(str(self._folder / "deepspeed"), tag="step")
            self._distributed.barrier()
            blocked = time.perf_counter() - began
            self._drain()
        else:
            saver = self._saver(background)
            saver.save(self._session, self._session.state("benchmark"))
            blocked = time.perf_counter() - began
            saver.join()
        total = time.perf_counter() - began
        size = self._distributed.from_main(self._empty)
        return blocked, total, size

    def _saver(self, background: bool) -> Saver:
        config = from_settings(
            {"task": "post_train", "data.articles": "none", "run.background_saves": background},
            where="benchmark",
        )
        run = Run(config, self._distributed, 1)
        run.store = self._store
        return Saver(run, Callbacks())

    def _drain(self) -> None:
        self._distributed.from_main(os.sync)

    def _empty(self) -> int:
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for entry in self._folder.iterdir():
            shutil.rmtree(entry)
        return size


def measure(options: argparse.Namespace) -> int:
    """On every rank: save in turns; rank 0 prints the medians."""
    config = from_settings(
        {
            "task": "post_train",
            "data.articles": "none",
            "run.dir": str(options.folder / "run"),
            "run.deepspeed": options.deepspeed,
            "run.global_batch": 2,
            "run.micro_batch": 1,
        },
        where="benchmark",
    )
    found: dict[str, list[tuple[float, float, float]]] = {
        way: [] for way in (FOREGROUND, BACKGROUND, DEEPSPEED)
    }
    folder = options.folder / "checkpoints"
    with start(config) as distributed:
        if distributed.is_main:
            folder.mkdir()
        bench = Bench(config, distributed, folder)
        # The first round warms up and does not count.
        for turn in range(options.rounds + 1):
            for way, results in found.items():
                result = bench.save(way, background=way == BACKGROUND)
                if turn:
                    results.append(result)
        if distributed.is_main:
            report(found, distributed, options)
    return 0


def report(
    found: dict[str, list[tuple[float, float, float]]],
    distributed: Distributed,
    options: argparse.Namespace,
) -> None:
    """Print medians and spreads."""
    print(
        f"{distributed.world_size} processes, {options.deepspeed}, {torch.get_num_threads()} "
        f"thread(s) each, medians of {options.rounds} (lowest to highest):"
    )
    for way, results in found.items():
        blocked, total = (
            f"{statistics.median(column):.2f} s ({min(column):.2f} to {max(column):.2f})"
            for column in list(zip(*results, strict=True))[:2]
        )
        size = statistics.median(result[2] for result in results) / 2**20
        there = "durable, by sync, after" if way == DEEPSPEED else "published and durable after"
        print(f"{way:>10}: training waits {blocked}, {there} {total}, {size:.0f} MiB")


def main() -> int:
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--deepspeed", default="zero2", help="a DeepSpeed file's name")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    if "RANK" in os.environ:
        return measure(options)
    with tempfile.TemporaryDirectory(prefix="checkpoints-", dir=options.folder) as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", __file__, "--rounds", str(options.rounds)]
        command += ["--deepspeed", options.deepspeed, "--folder", folder]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    leave(main())
