"""``tnr pipeline``: run the whole method from one YAML file, on this machine or on Slurm."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

MANY_STEPS = 1_000_000
"""Step limit above which a run counts as long enough for its teacher copies."""

if TYPE_CHECKING:
    from launchers.config import PipelineConfig
    from launchers.steps import Resources, Step
    from trainer.config.schema import TrainConfig


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands."""
    parser = subparsers.add_parser(
        "pipeline",
        help="run every step of the method, here or on Slurm; finished steps are skipped",
        description=(
            "Run the method in steps: shards, tokens, post-training, teachers, stage I, "
            "finetuning, stage II, baselines, evaluation, report. CONFIG is a YAML file; "
            "launchers/templates/mind.yaml is an example that explains every section."
        ),
    )
    parser.set_defaults(commands=subparsers.choices)
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    here = verbs.add_parser(
        "run",
        help="run the steps on this machine",
        epilog="example: tnr pipeline run mind.yaml --until finetune-teacher-1",
    )
    _add_config(here)
    here.add_argument("--print", action="store_true", help="show the steps and run nothing")
    _add_choice(here)
    here.add_argument(
        "--redo",
        action="store_true",
        help="if the configuration has changed: move the old outputs aside and repeat their steps",
    )
    here.add_argument(
        "--quiet",
        action="store_true",
        help="print one line per step; the logs hold the full output",
    )
    here.set_defaults(run=run_here)
    slurm = verbs.add_parser(
        "submit",
        help="submit the steps to Slurm as jobs that wait for each other",
        epilog="example: tnr pipeline submit mind.yaml --print",
    )
    _add_config(slurm)
    slurm.add_argument("--print", action="store_true", help="show every script and submit nothing")
    slurm.add_argument(
        "--cluster", metavar="FILE", help="cluster file, in place of the pipeline's 'cluster'"
    )
    _add_choice(slurm)
    slurm.set_defaults(run=run_submit)
    status = verbs.add_parser(
        "status",
        help="show a table of the steps: job, state, progress, time, log",
        epilog="example: tnr pipeline status mind.yaml",
    )
    _add_config(status)
    status.add_argument("--json", action="store_true", help="print the rows as JSON")
    status.set_defaults(run=run_status)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the pipeline's YAML file")
    parser.add_argument("--out", metavar="DIR", help="folder to use instead of the file's 'run'")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--only", metavar="STEP", help="run only this step")
    choice.add_argument(
        "--until", metavar="STEP", help="run this step and every step that it needs"
    )


def run_here(arguments: argparse.Namespace) -> int:
    """Run the steps, or show them."""
    import shlex

    from launchers.local import LocalOptions, run_steps
    from launchers.steps import choose

    config, steps = _load(arguments)
    check_steps(choose(steps, only=arguments.only, until=arguments.until), arguments.commands)
    if arguments.print:
        for step in choose(steps, only=arguments.only, until=arguments.until):
            waits = f"  (after {', '.join(step.needs)})" if step.needs else ""
            print(f"{step.name}{waits}")
            for command in step.tasks():
                print(f"  {shlex.join(command)}")
        return 0
    options = LocalOptions(
        only=arguments.only, until=arguments.until, redo=arguments.redo, quiet=arguments.quiet
    )
    return run_steps(steps, stamps_folder(config), options)


def run_submit(arguments: argparse.Namespace) -> int:
    """Submit the unfinished steps, or show the scripts of all steps."""
    from launchers.jobs import submission
    from launchers.slurm import load_cluster, make_jobs, render, submit
    from launchers.stamps import Stamps, State, refuse_stale
    from launchers.steps import choose, digests

    config, steps = _load(arguments)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else config.cluster
    folder, known = stamps_folder(config), digests(steps)
    chosen = choose(steps, only=arguments.only, until=arguments.until)
    check_steps(chosen, arguments.commands)
    if arguments.print:
        print(render(make_jobs(chosen, cluster, folder, known), folder))
        return 0
    stamps = Stamps(folder)
    with submission(folder) as (book, queued):
        states = {step.name: stamps.state(step, known[step.name]) for step in chosen}
        todo = [step for step in chosen if states[step.name] is not State.DONE]
        # Submitting refuses a queued step whose settings have changed.
        unqueued = [step for step in todo if step.name not in queued]
        stale = [step for step in unqueued if states[step.name] is State.STALE]
        refuse_stale(stale, f"Move {', '.join(str(step.output) for step in stale)} aside")
        left = {
            step.name: tasks
            for step in todo
            if len(tasks := stamps.tasks_left(step, known[step.name])) < len(step.array)
        }
        ids = submit(make_jobs(todo, cluster, folder, known, left), folder, book, queued)
    for name, number in ids.items():
        some = ", ".join(map(str, left.get(name, ())))
        print(f"{number}  {name}{f' (tasks {some})' if some else ''}")
    waiting, done = len(todo) - len(ids), len(chosen) - len(todo)
    print(f"{len(ids)} jobs submitted, {waiting} already queued, {done} steps already done")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Print the table, or its rows as JSON."""
    import json
    import sys

    from launchers.jobs import JobBook, ask_squeue
    from launchers.status import status_rows, table
    from launchers.steps import digests
    from trainer.errors import TinyNewsRecError

    config, steps = _load(arguments)
    folder = stamps_folder(config)
    asked = None
    try:
        if JobBook(folder).jobs:
            asked = ask_squeue()
    except TinyNewsRecError as error:
        print(f"tnr: {error}; the table shows what the jobs wrote", file=sys.stderr)
    rows = status_rows(steps, digests(steps), folder, asked)
    print(json.dumps([row.to_dict() for row in rows], indent=1) if arguments.json else table(rows))
    return 0


def stamps_folder(config: PipelineConfig) -> Path:
    """Return the folder of a pipeline's stamps, logs and scripts."""
    return Path(config.run) / "pipeline"


def check_steps(
    steps: Sequence[Step], commands: Mapping[str, argparse.ArgumentParser] | None = None
) -> None:
    """Find what the steps' own commands would refuse, before any step runs.

    For training steps, recipes, overrides and batch arithmetic are resolved; for other steps, the
    arguments are parsed. Notes on settings that other settings override go to standard error.

    Args:
        steps: The steps to show, run or submit.
        commands: Parser of each verb.

    Raises:
        ConfigError: A step is wrong; names the first one.
    """
    from trainer.errors import ConfigError

    for step in steps:
        try:
            if step.command[1] == "train":
                _check_training(step)
            elif commands is not None:
                for task in step.tasks():
                    _check_words(commands[task[1]], task[2:])
        except ConfigError as error:
            raise ConfigError(f"step {step.name}: {error}") from error
    say_notes(steps)


def say_notes(steps: Sequence[Step]) -> None:
    """Print notes about unexpected effects of the steps' settings, each note once."""
    import sys

    for note in dict.fromkeys(note for step in steps for note in step.notes):
        print(f"tnr: note: {note}", file=sys.stderr)


def _check_training(step: Step) -> None:
    from trainer.recipes.load import load_config

    config = load_config(step.command[2], step.command[3:], source="pipeline file")
    check_run(config, step.resources)


def check_run(config: TrainConfig, resources: Resources) -> None:
    """Check what a training run would check at its start, without data.

    Args:
        config: Configuration of the run.
        resources: Resources of the run.

    Raises:
        ConfigError: The batches do not divide, the run is too short for its teacher copies, the
            backbone is here and lacks a layer, or the DeepSpeed file is wrong.
    """
    from shards.pretrained import num_layers
    from trainer.config.validate import check_batch, check_layers
    from trainer.engine.copies import copy_steps
    from trainer.engine.deepspeed_file import read_deepspeed_file

    check_batch(config, resources.nodes * resources.processes)
    if config.run.max_steps is not None and config.run.max_steps <= MANY_STEPS:
        copy_steps(config.run.copies, config.run.max_steps)
    backbone = config.model.backbone
    if config.model.init is None and backbone.name != "random" and backbone.layers is not None:
        total = num_layers(backbone.name)
        if total is not None:
            check_layers(backbone, total)
    if config.run.deepspeed is not None:
        read_deepspeed_file(config.run.deepspeed)


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Parse a command's arguments; turn what argparse would print into an error."""
    import contextlib
    import io

    from trainer.errors import ConfigError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parser.parse_args(words)
    except SystemExit as stop:
        lines = said.getvalue().splitlines() or [""]
        why = lines[0].removeprefix("tnr: error: ") if stop.code else "--help cannot be a step"
        raise ConfigError(why) from stop


def _load(arguments: argparse.Namespace) -> tuple[PipelineConfig, list[Step]]:
    from launchers.pipeline import load_pipeline, pipeline_steps

    config = load_pipeline(arguments.config, run=arguments.out)
    return config, pipeline_steps(config)
