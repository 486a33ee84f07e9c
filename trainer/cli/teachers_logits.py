"""``tnr teachers logits``: fill the columns of stage I logits that a run reads."""

import argparse
from typing import TYPE_CHECKING

from trainer.cli.settings import add_settings, take_preset

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand to those of ``tnr teachers``."""
    logits = verbs.add_parser(
        "logits",
        help="stage 1: compute the logits of a run's negatives from stored vectors",
        description=(
            "Fill the columns that a run with 'teachers.logits stored' reads: every teacher's "
            "logits for each body with the negatives of each epoch. They are computed from the "
            "columns of 'tnr teachers cache --stage 1', without a model, and take (1 + "
            "negatives) values per article, teacher and epoch. Give RECIPE and overrides as for "
            "the run's 'tnr train', so that seed and negatives match. Options come before "
            "RECIPE. The command can be interrupted and shared among processes like 'tnr "
            "teachers cache'."
        ),
        epilog=(
            "example: tnr teachers logits post_train_distill --data.articles data/articles "
            "--teachers.models runs/teacher/copies/step_* --loss.embedding 0 --run.epochs 3"
        ),
    )
    logits.add_argument(
        "--epochs",
        metavar="E",
        help=(
            "epochs such as 0,1, counted from 0 (default: all that the run reads, including the "
            "one into which its last batch may run)"
        ),
    )
    logits.add_argument(
        "--part",
        default="0/1",
        metavar="I/N",
        help="fill the I-th of N parts of the cells, counted from 0 (default: all)",
    )
    logits.add_argument("recipe", metavar="RECIPE", help="a recipe's name or path")
    add_settings(logits)
    logits.set_defaults(run=run_logits)


def run_logits(arguments: argparse.Namespace) -> int:
    """Fill the missing cells."""
    take_preset(arguments)
    from trainer.cli.teachers import say_where
    from trainer.engine.signals import AFTER_BATCH, stop_on_signals
    from trainer.tasks.post_train.task import PostTrainDistillConfig
    from trainer.tasks.post_train.teachers import stored_logits
    from trainer.tasks.registry import open_sources
    from trainer.teacher_server import ranks
    from trainer.teacher_server.cells import parse_part
    from trainer.teacher_server.kinds.logits import fill_logits, parse_epochs

    part, parts = parse_part(arguments.part)
    epochs = None if arguments.epochs is None else parse_epochs(arguments.epochs)
    config = _config(arguments)
    here = ranks.place()
    assert isinstance(config, PostTrainDistillConfig), "no other task reads teachers.logits"
    logits = stored_logits(config, open_sources(config), epochs)
    say_where(here, logits.articles)
    with stop_on_signals(boundary=AFTER_BATCH) as stop:
        cells = fill_logits(logits, here.share(part, parts), here.say, stop)
    here.say(f"done: {cells} cells filled; the others were there already")
    return 0


def _config(arguments: argparse.Namespace) -> "TrainConfig":
    """Return the run's configuration with stored logits; the run folder may be missing."""
    from trainer.recipes.load import load_config, parse_overrides, read_recipe

    words = list(arguments.overrides)
    if not (read_recipe(arguments.recipe) | parse_overrides(words)).get("run.dir"):
        words += ["--run.dir", "."]
    words += ["--teachers.logits", "stored"]
    return load_config(arguments.recipe, words, preset=arguments.preset)
