"""Training, filling and evaluation alone and beside one busy process, for spin counts of OpenMP.

    python tests/benchmarks/contention.py [training] [filling] [evaluation] --rounds 3

Every spin count has a process of its own, which is warm and waits. A round lets them work in turn,
first alone, then each beside a process that loops. ``default`` leaves the library as it is. Prints
medians of samples (articles, impressions) a second and ratios of the same round.
``trainer/environment.py`` sets what was chosen by this.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PARTS = ("training", "filling", "evaluation")
TITLE, BODY = 24, 96
BATCH = 8
SIZES = "sizes.json"
WARM_UP = 4
VARIABLES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


def make_data(folder: Path, num_articles: int, layers: int, width: int) -> None:
    """Article and impression sets, a teacher and a recommender with random weights."""
    from filling import make_set
    from helpers.sets import make_impressions

    from shards.tokenize import tokenize_set
    from shards.tokenizer import train_tokenizer
    from trainer.tasks.build import build

    sizes = {"num_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
    (folder / SIZES).write_text(json.dumps(sizes))
    articles = make_set(folder / "articles", num_articles, num_articles)
    train_tokenizer(articles, folder / "tokenizer", 4000)
    tokenize_set(articles, folder / "tokenizer", title_tokens=TITLE, body_tokens=BODY)
    make_impressions(folder / "clicks", articles, 4 * num_articles, 4 * num_articles)
    for task in ("post_train", "finetune"):
        built = build(config_of(folder, task))
        built.export(built.module.model, folder / task, {})


def config_of(folder: Path, task: str, **dotted: Any) -> Any:
    """A run over that data; ``__`` stands for the dot in a setting's name."""
    from trainer.recipes.load import from_settings

    given: dict[str, Any] = {
        "task": task,
        "data.articles": folder / "articles",
        "run.dir": folder / f"run-{os.getpid()}",
        "data.max_title_tokens": TITLE,
        "data.max_body_tokens": BODY,
        "run.global_batch": BATCH,
        "run.micro_batch": BATCH,
        "run.epochs": 100_000,
    }
    for name, value in json.loads((folder / SIZES).read_text()).items():
        given[f"model.backbone.{name}"] = value
    if task == "finetune":
        given["data.clicks"] = folder / "clicks"
    return from_settings(
        given | {k.replace("__", "."): v for k, v in dotted.items()}, where="benchmark"
    )


class _Done(Exception):
    """The training was measured."""


class Turns:
    """Works when it is told to: each line of standard input is a turn, which prints its rate."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._warm = 0
        self._done = 0
        self._began = 0.0

    def count(self, num: int) -> bool:
        """Note what was done since the last call; False once there are no more turns."""
        if self._warm < WARM_UP:
            self._warm += 1
            return self._warm < WARM_UP or self._wait("ready")
        self._done += num
        took = time.perf_counter() - self._began
        return took < self._seconds or self._wait(str(self._done / took))

    def _wait(self, said: str) -> bool:
        print(said, flush=True)
        is_told = bool(sys.stdin.readline())
        self._done, self._began = 0, time.perf_counter()
        return is_told


def training(folder: Path, turns: Turns) -> None:
    """Steps of post-training, as ``tnr train`` takes them."""
    from trainer.engine.callback import Callback
    from trainer.engine.distributed import start
    from trainer.engine.trainer import Trainer
    from trainer.tasks.build import build

    class Counted(Callback):
        def before_step(self, step: Any) -> None:
            if not turns.count(BATCH):
                raise _Done

    config = config_of(folder, "post_train", run__checkpoint_every=10**6, run__log_every=10**6)
    with contextlib.suppress(_Done), start(config) as distributed:
        task = build(config)
        others = [Counted()]
        Trainer(config, task.module, task.data, task.export, distributed, callbacks=others).fit()


def filling(folder: Path, turns: Turns) -> None:
    """A teacher's column, again and again."""
    from filling import forget

    from shards.reader import ShardSet
    from trainer.teacher_server.fill import FillRequest, fill

    articles = ShardSet.open(folder / "articles")
    while turns.count(articles.num_rows):
        forget(articles)
        request = FillRequest(articles, None, compute="fp32")
        fill([str(folder / "post_train")], request, lambda line: None)


def evaluation(folder: Path, turns: Turns) -> None:
    """``tnr evaluate`` of a recommender, again and again."""
    from trainer.evaluate.evaluate import EvaluateOptions, evaluate_model

    options = EvaluateOptions(speed_s=0, device="cpu")
    while True:
        found = evaluate_model(folder / "finetune", folder / "articles", folder / "clicks", options)
        assert found is not None
        if not turns.count(len(found.log.rows())):
            return


WORK: dict[str, Callable[[Path, Turns], None]] = {
    "training": training,
    "filling": filling,
    "evaluation": evaluation,
}


class Side:
    """A process that works with one spin count, in turns."""

    def __init__(self, part: str, spin: str, folder: Path, seconds: float) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        if spin != "default":
            kept["GOMP_SPINCOUNT"] = spin
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(folder), "--seconds", str(seconds), part],
            env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def turn(self) -> float:
        """Work for a turn; returns what was done in a second."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.strip() == "ready" or line[:1].isdigit():
                return line
        raise SystemExit("a measured process failed; see above")


def measure(part: str, folder: Path, options: argparse.Namespace) -> None:
    """Let processes of every spin count take turns, alone and beside a busy one."""
    sides = {spin: Side(part, spin, folder, options.seconds) for spin in options.spins}
    alone: dict[str, list[float]] = {spin: [] for spin in sides}
    beside: dict[str, list[float]] = {spin: [] for spin in sides}
    order = list(sides)
    for _ in range(options.rounds):
        order.append(order.pop(0))  # nobody is always the first after the busy process
        for spin in order:
            alone[spin].append(sides[spin].turn())
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            for spin in order:
                beside[spin].append(sides[spin].turn())
        finally:
            busy.kill()
            busy.wait()
    for side in sides.values():
        side.end()
    show(part, alone, beside)


def main() -> None:
    """Measure the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--spins", nargs="+", default=["default", "0", "100", "1000", "10000"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--articles", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        WORK[options.parts[0]](options.child, Turns(options.seconds))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, options.articles, options.layers, options.width)
        for part in options.parts or PARTS:
            measure(part, folder, options)


def show(part: str, alone: dict[str, list[float]], beside: dict[str, list[float]]) -> None:
    """Print the medians; ratios are those of the same round."""
    first = next(iter(alone))
    print(f"{part}: {len(alone[first])} rounds, medians")
    for spin, quick in alone.items():
        slow = beside[spin]
        times = statistics.median(a / b for a, b in zip(quick, slow, strict=True))
        lost = statistics.median(a / b for a, b in zip(alone[first], quick, strict=True))
        print(
            f"  {spin:>8}: alone {statistics.median(quick):8.1f} a second, {lost:.2f} times the "
            f"time of {first}; beside one busy process {statistics.median(slow):8.1f}, "
            f"{times:5.2f} times slower than alone",
            flush=True,
        )


if __name__ == "__main__":
    main()
