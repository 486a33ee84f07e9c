"""``tnr train``: train one task from a recipe and overrides into a run folder."""

import argparse
from typing import TYPE_CHECKING, Any

from trainer.cli.settings import add_settings, take_preset

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig
    from trainer.engine.signals import StopRequest


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "train",
        help="train one task: post-training, finetuning, or the distillation of either",
        description=(
            "Train one task. RECIPE is the name of a recipe that comes with the project, or a "
            "YAML file; settings after it override the recipe. An interrupted run folder is "
            "continued; a finished one is left unchanged."
        ),
        epilog=(
            "example: tnr train post_train --data.articles data/articles --run.dir runs/teacher "
            "--model.backbone.name my/bert --run.global_batch 64. For several processes: "
            "torchrun --nproc-per-node 2 -m trainer.cli.main train RECIPE ... "
            "--run.deepspeed zero2. What a task reads: tnr train RECIPE --help"
        ),
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe's name or path")
    add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help="show the resolved run and stop")
    parser.add_argument(
        "--settings", action="store_true", help="list the settings of RECIPE, or of every task"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, or show the resolved run."""
    from trainer.engine.signals import stop_on_signals

    if arguments.recipe is not None and {"--help", "-h"} & set(arguments.overrides):
        arguments.settings = True
    overrides = [word for word in _own_options(arguments) if word not in ("--help", "-h")]
    if arguments.settings:
        return _print_settings(arguments.recipe, overrides)
    if arguments.dry_run:
        return _dry_run(_load(arguments, overrides), arguments.preset)
    # First of all: a scheduler may end the job while it starts.
    with stop_on_signals(is_training=False) as stop:
        return _train(_load(arguments, overrides), arguments.preset, stop)


def _load(arguments: argparse.Namespace, overrides: list[str]) -> "TrainConfig":
    from trainer.errors import ConfigError
    from trainer.recipes.load import load_config, recipe_names

    if arguments.recipe is None:
        raise ConfigError(
            f"no recipe given; expected a YAML file or one of {', '.join(recipe_names())}"
        )
    return load_config(arguments.recipe, overrides, preset=arguments.preset)


def _own_options(arguments: argparse.Namespace) -> list[str]:
    """Take this command's own options out of the words after the recipe."""
    take_preset(arguments, shows_help=False)
    words = list(arguments.overrides)
    for flag in ("--dry-run", "--settings"):
        if flag in words:
            words.remove(flag)
            setattr(arguments, flag[2:].replace("-", "_"), True)
    return words


def _train(config: "TrainConfig", preset: str | None, stop: "StopRequest") -> int:
    from trainer.engine.distributed import start
    from trainer.engine.trainer import Trainer
    from trainer.engine.watchdog import watched_start
    from trainer.hardware import check_preset
    from trainer.tasks.build import build

    check_preset(preset, config.run)
    with start(config) as distributed:
        with watched_start(distributed.rank, config.run.hang_timeout_s) as note:
            task = build(config, tick=note)
        Trainer(config, task.module, task.data, task.export, distributed, task.validation).fit(stop)
    return 0


def _dry_run(config: "TrainConfig", preset: str | None) -> int:
    import os

    import yaml

    from shards.mixing import measure_mixing
    from trainer.config.flat import to_dict
    from trainer.config.validate import check_memory
    from trainer.engine.deepspeed_file import check_by_deepspeed
    from trainer.engine.validation import check_patience
    from trainer.errors import ConfigError
    from trainer.hardware import check_preset, emulated, training_device
    from trainer.plan.batches import plan_batches, plan_steps
    from trainer.plan.frozen import frozen_column
    from trainer.tasks.build import open_data, open_validation
    from trainer.tasks.registry import open_sources

    check_preset(preset, config.run)
    if config.run.deepspeed is not None:
        check_by_deepspeed(config.run.deepspeed)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batches = plan_batches(config, 1, ranks)
    sources = open_sources(config)
    data = open_data(config, sources)
    validation, order = open_validation(config, sources, data), data.order
    shards = sources.ordered.shards
    mixing = measure_mixing(order, config.run.global_batch, [shard.bytes for shard in shards])
    plan = plan_steps(config, order.num_units)
    units, copies = plan.lines()
    lines = [batches.line(), units, mixing.line()]
    batch = (config.run.micro_batch, config.run.global_batch, ranks)
    sharing = data.sharing_choice(*batch) or data.sharing(*batch)
    lines += [sharing.line()] if sharing is not None else []
    lines += [copies, *data.notes]
    if validation is not None and config.validates is not None:
        check_patience(config.validates, plan.steps)
        lines += validation.notes
    column = frozen_column(config, None, sources, None)
    if column is not None:
        lines.append(f"{column.bytes / 1e6:,.1f} MB in {column.where}: {column.what}")
    try:
        check_memory(config)
    except ConfigError as error:  # the run may use another machine
        lines.append(f"WARNING: {error}")
    slow = emulated(config.run.precision, training_device())
    if slow is not None:
        lines.append(f"WARNING: {slow.line('run.precision')}")
    print(yaml.safe_dump(_plain(to_dict(config)), sort_keys=False), end="")
    for line in lines:
        print(f"# {line}")
    return 0


def _print_settings(recipe: str | None, overrides: list[str]) -> int:
    """Print the settings of a recipe's task, or of every task without a recipe."""
    import tyro

    from trainer.config.parts import with_parts
    from trainer.recipes.load import configuration_of
    from trainer.tasks.registry import TASKS, task_named

    read = {f"tnr train {name}": with_parts(task_named(name).config, {}) for name in TASKS}
    if recipe is not None:
        read = {f"tnr train {recipe}": configuration_of(recipe, overrides)}
    for command, config in read.items():
        try:
            tyro.cli(
                config,
                args=["--help"],
                prog=command,
                config=(tyro.conf.FlagConversionOff,),
                use_underscores=True,
            )
        except SystemExit as stop:
            if stop.code:
                return int(stop.code)
    print("Also: --preset NAME, --dry-run; see tnr train --help.")
    return 0


def _plain(value: Any) -> Any:
    """Convert tuples to lists, so that the printed YAML is itself a recipe."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
