"""``tnr plan``: show batches, steps, tokens, FLOPs, memory and disk before anything starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from shards.numbers import real, whole
from trainer.cli.settings import add_settings, take_preset

if TYPE_CHECKING:
    from trainer.plan.data import Counts
    from trainer.plan.plan import Options, Plan

NO_DATA = "(no data)"
"""Placeholder in ``data.articles`` of a plan without data."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "plan",
        help="plan a run or a pipeline: steps, tokens, memory per GPU, disk",
        description=(
            "Compute what a run needs before it starts. WHAT is a recipe (name or path), "
            "followed by overrides as for 'tnr train', or the YAML file of a pipeline, of which "
            "each training step is planned. Without data.articles, memory and FLOPs are planned "
            "from the configured maxima. Options come before WHAT."
        ),
        epilog=(
            "example: tnr plan --nodes 2 --processes 4 --gpu-gib 80 post_train --data.articles "
            "data/articles --run.global_batch 256 --run.deepspeed zero2"
        ),
    )
    parser.add_argument(
        "what", metavar="WHAT", help="a recipe's name or path, or a pipeline's YAML file"
    )
    add_settings(parser)
    parser.add_argument("--nodes", type=whole(1, 1_000_000), default=1, help="nodes (default 1)")
    parser.add_argument(
        "--processes", type=whole(1, 1_000_000), default=1, help="ranks per node (default 1)"
    )
    parser.add_argument(
        "--gpu-gib", type=real(most=1e9, above=0), help="memory of a GPU in GiB: shows what fits"
    )
    parser.add_argument(
        "--reserve-gib",
        type=real(0, 1e9),
        default=2.0,
        help=("GiB of a GPU reserved for CUDA, NCCL and fragmentation (default 2)"),
    )
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="GiB for activations"
    )
    parser.add_argument(
        "--tflops", type=real(1e-6, 1e9), help="peak of a GPU in TFLOP/s, in the run's precision"
    )
    parser.add_argument(
        "--utilisation",
        type=real(1e-6, 1),
        default=0.4,
        help=("share of the peak that the run reaches (default 0.4)"),
    )
    parser.add_argument(
        "--articles", type=whole(1, 10**15), help="number of articles, if the set is not built yet"
    )
    parser.add_argument(
        "--impressions",
        type=whole(0, 10**15),
        default=0,
        help=("number of impressions, if the set is not built yet; one click each"),
    )
    parser.add_argument(
        "--vocab-size",
        type=whole(1),
        default=30522,
        help="vocabulary of a random backbone without data",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the plan as JSON, in plain units"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    import json

    from trainer.plan.disk import rooms
    from trainer.plan.plan import crowded
    from trainer.plan.show import lines, to_json

    take_preset(arguments)
    plans = _pipeline(arguments) if _is_pipeline(arguments.what) else [_recipe(arguments)]
    items = [item for plan, _ in plans for item in plan.disk]
    warnings = crowded(items)
    if arguments.json:
        content = {
            "plans": [to_json(plan) for plan, _ in plans],
            "disk": [{"where": r.where, "needed": r.needed, "free": r.free} for r in rooms(items)],
            "warnings": warnings,
        }
        print(json.dumps(content, indent=2))
        return 0
    for plan, options in plans:
        print("\n".join(lines(plan, options)))
    for room in rooms(items):
        print(f"disk in all: {room.needed / 1e9:.2f} GB of {room.free / 1e9:.1f} GB free")
    for warning in warnings:
        print(f"WARNING: the plan does not fit on the disk: {warning}")
    return 0


def _recipe(arguments: argparse.Namespace) -> tuple[Plan, Options]:
    """Plan one run; data, clicks and the run folder may be missing."""
    from trainer.plan.plan import make_plan
    from trainer.recipes.load import (
        load_config,
        parse_overrides,
        read_recipe,
        task_of_recipe,
    )

    words = list(arguments.overrides)
    given = read_recipe(arguments.what) | parse_overrides(words)
    has_data = bool(given.get("data.articles"))
    for key in ("data.articles", "run.dir"):
        if not given.get(key):
            words += [f"--{key}", NO_DATA if key == "data.articles" else "."]
    if not has_data and task_of_recipe(arguments.what, words).config.reads_clicks:
        words += ["--data.clicks", NO_DATA]
    config = load_config(arguments.what, words, preset=arguments.preset)
    options = _options(arguments)
    counted = has_data or options.counts is not None
    return make_plan(config, options, name=arguments.what, has_data=counted), options


def _pipeline(arguments: argparse.Namespace) -> list[tuple[Plan, Options]]:
    """Plan every training step of a pipeline with the step's own resources."""
    from launchers.pipeline import load_pipeline, pipeline_steps
    from trainer.cli.pipeline import say_notes
    from trainer.errors import DataError, TinyNewsRecError, UsageError
    from trainer.plan.plan import make_plan
    from trainer.recipes.load import load_config

    if arguments.overrides or arguments.preset is not None:
        given = arguments.overrides or ["--preset", arguments.preset]
        raise UsageError(
            f"a pipeline takes neither overrides nor a preset, but {' '.join(given)} is given: "
            "set them in its file under 'set' and 'stages'"
        )
    plans = []
    steps = pipeline_steps(load_pipeline(arguments.what))
    say_notes(steps)
    for step in steps:
        if step.command[1] != "train":
            continue
        took = step.resources
        options = _options(arguments, nodes=took.nodes, processes=took.processes)
        try:
            config = load_config(step.command[2], step.command[3:], source="pipeline file")
            plan = make_plan(config, options, name=step.name, has_data=True)
        except TinyNewsRecError as error:
            hint = ""
            if isinstance(error, DataError) and options.counts is None:
                hint = " (if sets are not built yet, give --articles and --impressions)"
            raise type(error)(f"step {step.name}: {error}{hint}") from error
        plans.append((plan, options))
    return plans


def _is_pipeline(what: str) -> bool:
    """Check for a pipeline, whose ``run`` is a folder, not a section."""
    import os

    from trainer.config.yaml_files import read_yaml
    from trainer.recipes.load import is_yaml

    # pathlib's function raises if the name is too long.
    if not is_yaml(what) or not os.path.isfile(what):  # noqa: PTH113
        return False

    return isinstance(read_yaml(what).get("run"), str)


def _options(arguments: argparse.Namespace, **changes: Any) -> Options:
    from trainer.plan.plan import Options

    given: dict[str, Any] = {
        "nodes": arguments.nodes,
        "processes": arguments.processes,
        "gpu_gib": arguments.gpu_gib,
        "reserve_gib": arguments.reserve_gib,
        "device": arguments.device,
        "tflops": arguments.tflops,
        "utilisation": arguments.utilisation,
        "vocab_size": arguments.vocab_size,
        "counts": _counts(arguments),
    }
    return Options(**given | changes)


def _counts(arguments: argparse.Namespace) -> Counts | None:
    from trainer.plan.data import told

    return told(arguments.articles, arguments.impressions) if arguments.articles else None
