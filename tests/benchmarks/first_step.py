"""Time from `tnr train` to its first step, in fresh processes with a warm page cache.

    TNR_TEST_DATA=... TNR_TEST_ENCODERS=... python tests/benchmarks/first_step.py

Elapsed and processor seconds until the run says that step 1 is done, plainly and with DeepSpeed
ZeRO-2, in turns; then the same start in one process phase by phase, to the end of the run: after
its one step come a checkpoint and an export. Last, the same run as the second step of a pipeline,
whose steps are forked from a process that has imported everything. One start of each comes first
and is not counted.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from doj import ROOT, make_articles, settings, spread

sys.path.insert(0, str(ROOT))

from launchers.local import LocalOptions, run_steps
from launchers.stamps import Stamps
from launchers.steps import Step

WAYS: dict[str, dict[str, str]] = {"plain": {}, "ZeRO-2": {"run__deepspeed": "zero2"}}
PHASES = (
    "import torch",
    "import the engine",
    "import the models",
    "start",
    "build",
    "step, checkpoint",
)


def words_of(articles: Path, folder: Path, way: str) -> list[str]:
    """Recipe and overrides of a run of one step."""
    dotted = {
        "run__dir": folder,
        "run__max_steps": 1,
        "run__copies__rule": "none",
        "run__global_batch": 4,
        "run__micro_batch": 4,
        "data__max_body_tokens": 32,
    }
    return ["post_train", *settings(articles, **dotted, **WAYS[way])]


def until_first_step(words: list[str]) -> tuple[float, float]:
    """Elapsed seconds until the line of step 1, and processor seconds of the whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-m", "trainer.cli.main", "train", *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        took, lines = None, []
        for line in process.stdout or ():
            lines.append(line)
            if took is None and line.startswith("step 1"):
                took = time.perf_counter() - began
    if process.returncode or took is None:
        raise RuntimeError(f"no first step: {''.join(lines[-3:])}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, spent


def in_a_pipeline(words: list[str], again: list[str], folder: Path) -> float:
    """Seconds from the start of a step of a pipeline to its first log line; the step before it has
    started the process that steps are forked from."""
    commands = {"before": words, "timed": again}
    steps = [Step(name=name, command=("tnr", "train", *w)) for name, w in commands.items()]
    with contextlib.redirect_stdout(io.StringIO()):
        run_steps(steps, folder / "pipeline", LocalOptions(quiet=True))
    stamp = Stamps(folder / "pipeline").read(steps[1])
    assert stamp is not None
    run = Path(again[again.index("--run.dir") + 1])
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    return float(first["time"]) - stamp.start


def phases(words: list[str]) -> list[float]:
    """Seconds of each of PHASES in this process."""
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    import torch  # noqa: F401

    mark()
    import accelerate  # noqa: F401

    from trainer.engine.distributed import start
    from trainer.engine.trainer import Trainer
    from trainer.recipes.load import load_config

    mark()
    from trainer.tasks.build import build

    mark()
    config = load_config(words[0], words[1:])
    with start(config) as distributed:
        mark()
        task = build(config)
        mark()
        trainer = Trainer(config, task.module, task.data, lambda *_: None, distributed)
        trainer.fit()
        mark()
    return [after - before for before, after in pairwise(marks)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inner", nargs="+", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.inner:
        print(json.dumps(phases([*options.inner, *rest])))
        return
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    parts: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        articles = make_articles(Path(work), 256)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        in_pipeline: list[float] = []
        for repeat in range(options.repeats + 1):
            pair = [words_of(articles, Path(work) / f"step-{repeat}-{n}", "plain") for n in (0, 1)]
            took_s = in_a_pipeline(*pair, Path(work) / f"pipeline-{repeat}")
            in_pipeline += [took_s] if repeat else []
            for way in WAYS:
                took = until_first_step(words_of(articles, Path(work) / f"{way}-{repeat}", way))
                words = words_of(articles, Path(work) / f"{way}-{repeat}-phases", way)
                done = subprocess.run(
                    [sys.executable, __file__, "--inner", *words],
                    cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
                )  # fmt: skip
                if repeat:
                    found[way].append(took)
                    parts[way].append(json.loads(done.stdout.splitlines()[-1]))
    for way in WAYS:
        elapsed, spent = zip(*found[way], strict=True)
        print(f"{way}: first step after {spread(list(elapsed))} s; "
              f"processor {spread(list(spent))} s in all")  # fmt: skip
        for name, values in zip(PHASES, zip(*parts[way], strict=True), strict=True):
            print(f"  {name:<18} {statistics.median(values):.2f} s")
    print(f"as a step of a pipeline: first step after {spread(in_pipeline)} s")


if __name__ == "__main__":
    main()
