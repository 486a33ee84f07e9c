"""``tnr demo``: run the whole method on a synthesized world or on a user's own files."""

import argparse
from pathlib import Path
from typing import Any

import launchers
from shards.numbers import seed

TEMPLATE = Path(launchers.__file__).parent / "templates" / "demo.yaml"


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "demo",
        help="run the whole method on a synthesized world, up to a table and a plot",
        description=(
            "Run every step of the method in a few minutes on a laptop's CPU: make a small news "
            "world, post-train a teacher, keep 4 copies of it, store their outputs, distil a "
            "one-layer and a two-layer student, finetune, distil again, and evaluate against "
            "models that were finetuned without teachers. After an interruption, the same "
            "command continues. With other options, the same command repeats the steps that the "
            "options change, and moves the old results aside."
        ),
        epilog=(
            "example on your own files: tnr demo --articles news.jsonl --clicks "
            "train/behaviors.tsv --dev-clicks dev/behaviors.tsv --out runs/mine"
        ),
    )
    parser.add_argument("--out", default="runs/demo", help="output folder (default %(default)s)")
    parser.add_argument(
        "--articles", nargs="+", metavar="FILE", help="article files, or MIND folders or zips"
    )
    parser.add_argument(
        "--clicks", metavar="LOG", help="MIND folder, zip or behaviors.tsv to train on"
    )
    parser.add_argument(
        "--dev-clicks",
        metavar="LOG",
        help="labelled log to evaluate on (default: hold out the last tenth of --clicks)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=seed,
        default=[0],
        help=("seeds of students and baselines (default 0)"),
    )
    parser.add_argument("--print", action="store_true", help="show the steps' commands and stop")
    parser.add_argument(
        "--quiet",
        action="store_true",
        help=("print one line per step, without the steps' own output"),
    )
    parser.set_defaults(run=run, commands=subparsers.choices)


def run(arguments: argparse.Namespace) -> int:
    """Make the pipeline, run it, and show its results."""
    import shlex

    from launchers.config import PipelineConfig
    from launchers.local import LocalOptions, run_steps
    from launchers.pipeline import pipeline_steps
    from launchers.settings import build
    from trainer.cli.pipeline import check_steps
    from trainer.evaluate.text_report import SEGMENTS

    config = build(PipelineConfig, settings(arguments), "")
    steps = pipeline_steps(config)
    check_steps(steps, arguments.commands)
    if arguments.print:
        for step in steps:
            print("\n".join(shlex.join(command) for command in step.tasks()))
        return 0
    out = Path(config.run)
    code = run_steps(steps, out / "pipeline", LocalOptions(quiet=arguments.quiet, redo=True))
    if code == 0:
        # The demo ends with the table; the segments of the report are for a second look.
        shown = (out / "report.md").read_text(encoding="utf-8").partition(SEGMENTS)[0]
        print(f"{shown.rstrip()}\n\nby history, news, category and hour: {out / 'report.md'}")
        print(f"plot: {out / 'quality_speed.png'}")
        print(f"every run in TensorBoard: tensorboard --logdir {shlex.quote(str(out / 'runs'))}")
    return code


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return ``launchers/templates/demo.yaml``'s pipeline on the world or the user's own files.

    Raises:
        UsageError: Articles are given without clicks, or clicks without articles.
    """
    from trainer.config.text import refuse_control
    from trainer.config.yaml_files import read_yaml
    from trainer.errors import UsageError

    content = read_yaml(TEMPLATE)
    content["run"] = refuse_control(arguments.out, "--out")
    content["seeds"] = arguments.seeds
    if (arguments.articles is None) != (arguments.clicks is None):
        raise UsageError(
            "--articles and --clicks go together: give both your own texts and your own log"
        )
    if arguments.articles is not None:
        train, dev = arguments.clicks, arguments.dev_clicks
        if dev is None:
            train, dev = hold_out(Path(train), Path(arguments.out) / "split")
        content["data"] = {
            "articles": arguments.articles,
            "train_clicks": [str(train)],
            "dev_clicks": [str(dev)],
        }
    return content


def hold_out(log: Path, folder: Path) -> tuple[Path, Path]:
    """Split a click log: nine tenths to train on, the last tenth to evaluate.

    Returns:
        Two ``behaviors.tsv`` in a folder below ``folder`` that is named after the log's content:
        each log has its own split, and a log is split only once.

    Raises:
        DataError: The log does not exist or has fewer than ten lines.
    """
    import hashlib

    from shards.errors import DataError
    from shards.files import atomic_file
    from shards.mind import BEHAVIORS_NAME, find_member
    from shards.sources import InputFile

    file = find_member(log, BEHAVIORS_NAME) or InputFile(log)
    total, digest = 0, hashlib.sha256()
    for _, line in file.lines():
        total += 1
        digest.update((line or b"") + b"\n")
    if total < 10:
        raise DataError(f"{log} has {total} lines; expected at least 10, to hold out a tenth")
    split = folder / digest.hexdigest()[:12]
    train, dev = split / "train" / BEHAVIORS_NAME, split / "dev" / BEHAVIORS_NAME
    if train.is_file() and dev.is_file():
        return train, dev
    train.parent.mkdir(parents=True, exist_ok=True)
    dev.parent.mkdir(parents=True, exist_ok=True)
    last = total - total // 10
    with atomic_file(train) as train_file, atomic_file(dev) as dev_file:
        for number, line in file.lines():
            if line is not None:
                (train_file if number <= last else dev_file).write(line + b"\n")
    return train, dev
