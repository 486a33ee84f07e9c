"""What our loop costs beside a bare torch loop of the same model, batches, losses and optimizer.

    TNR_TEST_DATA=... TNR_TEST_ENCODERS=... python tests/benchmarks/loop_overhead.py

The trainer trains in earnest; before each of its steps a bare loop takes one with a model of its
own, so that the two take turns. Ours is timed from the fetch of a batch to the next fetch: waiting
for data, random seeds, agreement of ranks, logging and TensorBoard are in it. The bare step is
timed with batches collated beforehand, and with collating them itself. The tiny model is there for
the microseconds; the ratio of the other is the one to look at. The first steps of both, and the
last, which writes the checkpoint, are not counted.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from doj import make_articles, settings, spread

NOT_COUNTED = 3


def bare_loop(articles: Path, config: Any) -> Any:
    """A function that takes the bare step of a number: seconds of collating, and of the rest."""
    import torch

    from shards.stream import Stream
    from trainer.engine.optimizer import build_optimizer
    from trainer.tasks.build import build

    torch.manual_seed(config.run.seed)
    task = build(config)
    task.module.train()
    optimizer = build_optimizer(task.module, config.optimizer)
    rows = iter(Stream(task.data.order, config.run.global_batch, 0, 1, None))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        batch = task.data.collate(next(rows)).batch
        collated = time.perf_counter()
        task.module(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return collated - start, time.perf_counter() - collated

    return step


def measure(articles: Path, work: Path, steps: int, **dotted: Any) -> dict[str, list[float]]:
    """Seconds of each counted step: ours, the bare one, and the bare one with its collating."""
    from trainer.engine.callback import Callback
    from trainer.engine.distributed import start
    from trainer.engine.trainer import Trainer
    from trainer.recipes.load import load_config
    from trainer.tasks.build import build

    dotted |= {
        "run__dir": work / "run",
        "run__max_steps": steps,
        "run__epochs": 1000,
        "run__copies__rule": "none",
        "run__checkpoint_every": steps,
    }
    config = load_config("post_train", settings(articles, **dotted))
    bare = bare_loop(articles, config)
    found: dict[str, list[float]] = {"ours": [], "bare": [], "bare with data": []}

    class Timed(Callback):
        began: float | None = None

        def before_step(self, step: Any) -> None:
            if self.began is not None:
                found["ours"].append(time.perf_counter() - self.began)
            collate, rest = bare()
            found["bare"].append(rest)
            found["bare with data"].append(collate + rest)
            self.began = time.perf_counter()

    with start(config) as distributed:
        task = build(config)
        others = [Timed()]
        Trainer(config, task.module, task.data, task.export, distributed, callbacks=others).fit()
    counted = slice(NOT_COUNTED, steps - 1)
    return {name: values[counted] for name, values in found.items()}


def show(name: str, found: dict[str, list[float]]) -> None:
    ours = found["ours"]
    print(f"\n{name}: {len(ours)} steps, medians (extremes)")
    print(f"  {'ours':<16} {spread([1e3 * s for s in ours])} ms")
    for side in ("bare", "bare with data"):
        bare = found[side]
        extra = statistics.median([1e6 * (a - b) for a, b in zip(ours, bare, strict=True)])
        share = 100 * statistics.median([a / b - 1 for a, b in zip(ours, bare, strict=True)])
        print(
            f"  {side:<16} {spread([1e3 * s for s in bare])} ms; ours takes {extra:,.0f} us more "
            f"({share:+.1f}%), over all steps {100 * (sum(ours) / sum(bare) - 1):+.1f}%"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--tiny-steps", type=int, default=400)
    options = parser.parse_args()
    batch = {"run__global_batch": 8, "run__micro_batch": 8, "data__max_body_tokens": 128}
    tiny = {
        "model__backbone__name": "random",
        "model__backbone__num_layers": 2,
        "model__backbone__hidden_size": 64,
        "model__backbone__intermediate_size": 128,
        "data__max_body_tokens": 32,
        "data__in_batch_negatives": True,
    }
    with tempfile.TemporaryDirectory() as work:
        articles = make_articles(Path(work), 1024)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        for name, steps, dotted in (
            ("all-MiniLM-L6-v2, title 24, body 128, batch 8", options.steps,
             {**batch, "data__in_batch_negatives": True}),
            ("two layers of width 64, body 32, batch 8", options.tiny_steps, batch | tiny),
        ):  # fmt: skip
            folder = Path(work) / name.split(",")[0].replace(" ", "-")
            folder.mkdir()
            show(name, measure(articles, folder, steps, **dotted))


if __name__ == "__main__":
    main()
