"""``tnr pipeline``: the whole method from one YAML file, here or on Slurm."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchers.config import PipelineConfig
    from launchers.steps import Step


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its sub-verbs."""
    parser = subparsers.add_parser(
        "pipeline",
        help="run every step of the method, here or on Slurm; what is done is skipped",
        description=(
            "The method as steps: shards, tokens, post-training, teachers, stage I, finetuning, "
            "stage II, baselines, evaluation, report. CONFIG is a YAML file; "
            "launchers/templates/mind.yaml is an example with every section explained."
        ),
    )
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
        help="where the configuration changed since: move former outputs aside and do them again",
    )
    here.add_argument("--quiet", action="store_true", help="show one line a step; logs have all")
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
        help="a table of the steps: job, state, progress, time, log",
        epilog="example: tnr pipeline status mind.yaml",
    )
    _add_config(status)
    status.add_argument("--json", action="store_true", help="the rows as JSON")
    status.set_defaults(run=run_status)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the pipeline")
    parser.add_argument("--out", metavar="DIR", help="folder to use in place of the file's 'run'")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--only", metavar="STEP", help="this step alone")
    choice.add_argument("--until", metavar="STEP", help="this step and everything it needs")


def run_here(arguments: argparse.Namespace) -> int:
    """Run the steps, or show them."""
    import shlex

    from launchers.local import LocalOptions, run_steps
    from launchers.steps import choose

    config, steps = _load(arguments)
    if arguments.print:
        for step in choose(steps, only=arguments.only, until=arguments.until):
            waits = f"  (after {', '.join(step.needs)})" if step.needs else ""
            print(f"{step.name}{waits}")
            for command in step.tasks():
                print(f"  {shlex.join(command)}")
        return 0
    check_training(steps)
    options = LocalOptions(
        only=arguments.only, until=arguments.until, redo=arguments.redo, quiet=arguments.quiet
    )
    return run_steps(steps, stamps_folder(config), options)


def run_submit(arguments: argparse.Namespace) -> int:
    """Submit the steps that are not done, or show the scripts of all of them."""
    from launchers.jobs import submission
    from launchers.slurm import load_cluster, make_jobs, render, submit
    from launchers.stamps import Stamps, State, refuse_stale
    from launchers.steps import choose, digests

    config, steps = _load(arguments)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else config.cluster
    folder, known = stamps_folder(config), digests(steps)
    chosen = choose(steps, only=arguments.only, until=arguments.until)
    check_training(chosen)
    if arguments.print:
        print(render(make_jobs(chosen, cluster, folder, known), folder))
        return 0
    stamps = Stamps(folder)
    with submission(folder) as (book, queued):
        states = {step.name: stamps.state(step, known[step.name]) for step in chosen}
        todo = [step for step in chosen if states[step.name] is not State.DONE]
        # What is queued with other settings is refused where it would be submitted.
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
    print(f"{len(ids)} jobs submitted, {waiting} queued already, {done} steps done already")
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
        print(f"tnr: {error}; shown is what the jobs wrote", file=sys.stderr)
    rows = status_rows(steps, digests(steps), folder, asked)
    print(json.dumps([row.to_dict() for row in rows], indent=1) if arguments.json else table(rows))
    return 0


def stamps_folder(config: PipelineConfig) -> Path:
    """Where a pipeline keeps its stamps, logs and scripts."""
    return Path(config.run) / "pipeline"


def check_training(steps: list[Step]) -> None:
    """Resolve every training step's recipe and overrides, so that no mistake waits for its turn.

    Raises:
        ConfigError: Of the first step that is wrong; names the step.
    """
    from trainer.config.load import load_config
    from trainer.errors import ConfigError

    for step in steps:
        if step.command[1] == "train":
            try:
                load_config(step.command[2], step.command[3:])
            except ConfigError as error:
                raise ConfigError(f"step {step.name}: {error}") from error


def _load(arguments: argparse.Namespace) -> tuple[PipelineConfig, list[Step]]:
    from launchers.pipeline import load_pipeline, pipeline_steps

    config = load_pipeline(arguments.config, run=arguments.out)
    return config, pipeline_steps(config)
