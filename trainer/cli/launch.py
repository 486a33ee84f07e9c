"""``tnr launch``: submit one training job to a cluster."""

from __future__ import annotations

import argparse

from shards.numbers import whole
from trainer.cli.settings import add_settings, take_preset


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommand."""
    parser = subparsers.add_parser("launch", help="submit one training job to Slurm")
    verbs = parser.add_subparsers(dest="scheduler", metavar="SCHEDULER", required=True)
    slurm = verbs.add_parser(
        "slurm",
        help="submit one training job to Slurm",
        description=(
            "Submit `tnr train RECIPE ...` as a Slurm job that is requeued until it is done. The "
            "recipe and its batch arithmetic are checked first. Options come before RECIPE; "
            "settings follow it. Script, stamp and logs go to the folder 'launch' in run.dir. "
            "While the job is queued or running, the same command submits nothing."
        ),
        epilog=(
            "example: tnr launch slurm --nodes 2 --processes 4 --gpus 4 --cpus 32 --minutes 1440 "
            "--cluster cluster.yaml post_train --data.articles data/articles --run.dir runs/one "
            "--run.deepspeed zero2"
        ),
    )
    slurm.add_argument(
        "--nodes", type=whole(most=1_000_000), default=1, help="nodes (default %(default)s)"
    )
    slurm.add_argument(
        "--processes",
        type=whole(most=1_000_000),
        default=1,
        help=("ranks per node (default %(default)s)"),
    )
    slurm.add_argument(
        "--gpus", type=whole(most=1_000_000), default=0, help="GPUs per node (default %(default)s)"
    )
    slurm.add_argument(
        "--cpus",
        type=whole(most=1_000_000),
        default=4,
        help=("CPU cores per node (default %(default)s)"),
    )
    slurm.add_argument(
        "--minutes", type=whole(), default=60, help="time limit in minutes (default %(default)s)"
    )
    slurm.add_argument("--name", default="train", help="name of the job (default %(default)s)")
    slurm.add_argument(
        "--cluster", metavar="FILE", help="cluster file such as launchers/templates/cluster.yaml"
    )
    slurm.add_argument("--print", action="store_true", help="show the script and submit nothing")
    slurm.add_argument("recipe", metavar="RECIPE", help="a recipe's name or path")
    add_settings(slurm)
    slurm.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Submit the job, or show its script.

    Raises:
        ConfigError: The recipe, the batch arithmetic or an option is wrong.
        TinyNewsRecError: The job cannot be submitted.
    """
    from pathlib import Path

    from launchers.jobs import submission
    from launchers.slurm import ClusterConfig, load_cluster, make_jobs, render, submit
    from launchers.steps import Resources, Step, digests
    from trainer.cli.pipeline import check_run
    from trainer.recipes.load import load_config

    take_preset(arguments)
    _check_options(arguments)
    resources = Resources(
        nodes=arguments.nodes,
        processes=arguments.processes,
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        minutes=arguments.minutes,
    )
    config = load_config(arguments.recipe, arguments.overrides, preset=arguments.preset)
    check_run(config, resources)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else ClusterConfig()
    preset = () if arguments.preset is None else ("--preset", arguments.preset)
    step = Step(
        name=arguments.name,
        command=("tnr", "train", arguments.recipe, *preset, *arguments.overrides),
        resources=resources,
    )
    folder = Path(config.run.dir) / "launch"
    jobs = make_jobs([step], cluster, folder, digests([step]))
    if arguments.print:
        print(render(jobs, folder))
        return 0
    with submission(folder) as (book, queued):
        ids = submit(jobs, folder, book, queued)
    for number in ids.values():
        print(f"{number}  {step.name}: script and logs in {folder}")
    if step.name in queued:
        print(f"{step.name} is already queued as job {queued[step.name]}; nothing was submitted")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    import re

    from trainer.errors import ConfigError

    if not re.fullmatch(r"\w[\w.-]*", arguments.name):
        raise ConfigError(
            f"--name is {arguments.name!r}; expected letters, digits, -, _ and ., starting with a "
            "letter or digit"
        )
    names = ("nodes", "processes", "gpus", "cpus", "minutes", "name", "cluster", "print")
    own = {f"--{name}" for name in names}
    for word in arguments.overrides:
        if word.split("=")[0] in own:
            raise ConfigError(f"{word} comes after the recipe: put options of launch before it")
