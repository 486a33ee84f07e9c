"""``tnr teachers``: plan, fill, inspect, check and prune the stored outputs of teachers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from shards.numbers import real, whole
from trainer.cli import teachers_logits
from trainer.cli.settings import add_device
from trainer.teacher_server.kinds import KINDS, stages

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from trainer.teacher_server.ranks import Place
    from trainer.teacher_server.request import FillRequest

_MODELS_HELP = (
    "teachers, in order: exported folders, teacher copies, run folders (their export), or a "
    "run's copies folder (all copies, by step)"
)


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its subcommands."""
    parser = subparsers.add_parser(
        "teachers",
        help="teacher server: compute the outputs of M teachers once",
        description=(
            "Run every teacher once over the corpus and store its vectors and scores as columns "
            "next to the shard sets. Columns are checked against the teacher's weights, "
            "tokenizer and lengths."
        ),
    )
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_plan(verbs)
    _add_cache(verbs)
    teachers_logits.register(verbs)
    _add_status(verbs)
    _add_verify(verbs)
    _add_prune(verbs)
    _add_adopt(verbs)


def _add_plan(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plan = verbs.add_parser(
        "plan",
        help="show cells, bytes, free disk and hours by a short trial; write nothing",
    )
    _add_common(plan)
    _add_running(plan)
    plan.add_argument(
        "--tasks",
        type=whole(most=1_000_000),
        default=1,
        metavar="N",
        help="number of tasks that share the cells (--part I/N)",
    )
    plan.add_argument(
        "--trial-s",
        type=real(0, 1e6),
        default=3.0,
        help="seconds of encoding per teacher (default %(default)s)",
    )
    _add_json(plan)
    plan.set_defaults(run=run_plan)


def _add_cache(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    cache = verbs.add_parser(
        "cache",
        help="fill the columns of teachers; filled cells are skipped",
        description=(
            "Fill the columns of teachers, one teacher in memory at a time. Several processes "
            "(torchrun, accelerate launch, srun) share the cells, each on its own device. TERM, "
            "INT, USR1 and USR2 stop the work after the current batch with exit code 75: "
            "finished cells stay, and the same command continues."
        ),
        epilog=(
            "example: tnr teachers cache --stage 1 --articles data/articles "
            "--models runs/teacher/copies; as an array of 8 (sbatch --array=0-7): "
            'tnr teachers cache ... --part "$SLURM_ARRAY_TASK_ID/8"'
        ),
    )
    _add_common(cache)
    _add_running(cache)
    cache.add_argument(
        "--part",
        default="0/1",
        metavar="I/N",
        help="fill the I-th of N parts of the cells, counted from 0 (default: all)",
    )
    cache.set_defaults(run=run_cache)


def _add_status(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = verbs.add_parser(
        "status",
        help="show how far each teacher's columns are filled; exit 1 if a column is incomplete",
    )
    _add_common(status)
    _add_json(status)
    status.set_defaults(run=run_status)


def _add_verify(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = verbs.add_parser(
        "verify", help="check stored bytes, and recompute a sample of rows with the live teacher"
    )
    _add_common(verify)
    verify.add_argument(
        "--rows", type=whole(), default=64, help="rows to recompute (default %(default)s)"
    )
    verify.set_defaults(run=run_verify)


def _add_prune(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    prune = verbs.add_parser(
        "prune",
        help="list columns that no teacher or recipe named here uses; remove them with --yes",
        epilog="example: tnr teachers prune data/articles data/train --recipes runs/*/config.json",
    )
    prune.add_argument("sets", nargs="+", metavar="SET", help="shard sets whose columns are listed")
    prune.add_argument(
        "--keep-models", nargs="+", default=[], metavar="FOLDER", help="teachers to keep"
    )
    prune.add_argument(
        "--recipes",
        nargs="+",
        default=[],
        metavar="FILE",
        help="recipes or config.json of runs: the teachers in their teachers.models are kept",
    )
    prune.add_argument("--yes", action="store_true", help="remove the listed columns")
    prune.set_defaults(run=run_prune)


def _add_adopt(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    adopt = verbs.add_parser(
        "adopt",
        help="make a stage 1 teacher from a plain Hugging Face encoder by pooling its states",
        epilog=(
            "example: tnr teachers adopt sentence-transformers/all-MiniLM-L6-v2 "
            "--out teachers/minilm --max-body-tokens 256"
        ),
    )
    adopt.add_argument(
        "encoder",
        metavar="NAME",
        help="folder, or Hugging Face name in the local cache (`hf download NAME` puts it there)",
    )
    adopt.add_argument("--out", required=True, type=Path, help="folder to write; must not exist")
    adopt.add_argument(
        "--pooling", choices=("mean", "cls"), default="mean", help="default %(default)s"
    )
    adopt.add_argument(
        "--news-text",
        default="title",
        metavar="F,F",
        help=(
            "fields that the teacher reads, joined in this order, where its student reads "
            "titles: title, abstract, body, category (default %(default)s)"
        ),
    )
    for field, tokens in (("title", 24), ("abstract", 64), ("body", 512), ("category", 10)):
        adopt.add_argument(
            f"--max-{field}-tokens",
            type=whole(),
            default=tokens,
            metavar="N",
            help=f"longest {field} in tokens (default %(default)s)",
        )
    adopt.set_defaults(run=run_adopt)


def _add_common(parser: argparse.ArgumentParser) -> None:
    held = {
        stage: ", ".join(KINDS[name].about for name in names) for stage, names in stages().items()
    }
    parser.add_argument(
        "--stage",
        choices=list(held),
        required=True,
        help="; ".join(f"{stage}: {about}" for stage, about in held.items()),
    )
    parser.add_argument("--articles", required=True, metavar="SET", help="article shard set")
    parser.add_argument("--clicks", metavar="SET", help="impression shard set (stage 2)")
    parser.add_argument("--models", nargs="+", required=True, metavar="FOLDER", help=_MODELS_HELP)
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32", "int8"),
        default="float16",
        help="storage type of values; int8 has one scale per vector, and stores scores in float16",
    )
    parser.add_argument(
        "--compute",
        choices=("auto", "fp32", "bf16"),
        default="fp32",
        help=(
            "precision of the forward pass (default %(default)s, exact everywhere); auto uses "
            "bf16 if the hardware has it. A column records the precision used, and students ask "
            "for it by teachers.compute: set it explicitly if machines of several kinds fill one "
            "set"
        ),
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-tokens",
        type=whole(),
        default=None,
        help="tokens per forward pass (default 16384 on a GPU, 4096 on a CPU)",
    )
    add_device(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _request(arguments: argparse.Namespace) -> "FillRequest":
    from shards.reader import ShardSet
    from trainer.errors import UsageError
    from trainer.hardware import pick_device, warn_if_emulated
    from trainer.teacher_server import ranks
    from trainer.teacher_server.cells import parse_part
    from trainer.teacher_server.request import FillRequest, reads_impressions

    if (arguments.clicks is None) == reads_impressions(arguments.stage):
        named = " or ".join(f"--stage {one}" for one in stages() if reads_impressions(one))
        raise UsageError(f"--clicks requires {named}, and {named} requires --clicks")
    here = ranks.place()
    ranks.share_cores(here)
    device = pick_device(getattr(arguments, "device", "auto"), here.local_rank)
    batch_tokens = getattr(arguments, "batch_tokens", None)
    if batch_tokens is None:
        batch_tokens = 4096 if device == "cpu" else 16384  # a CPU's caches are smaller
    if batch_tokens < 1:
        raise UsageError(f"--batch-tokens is {batch_tokens}; expected at least 1")
    compute = ranks.resolve_compute(arguments.compute, device)
    warn_if_emulated(compute, device, "--compute")
    part, parts = parse_part(getattr(arguments, "part", "0/1"))
    return FillRequest(
        # Only the set's columns are read, and the columns are bound to the original shards.
        articles=ShardSet.open(arguments.articles, kind="articles", check_files=False),
        impressions=ShardSet.open(arguments.clicks, kind="impressions")
        if arguments.clicks
        else None,
        dtype=arguments.dtype,
        compute=compute,
        batch_tokens=batch_tokens,
        device=device,
        part=here.share(part, parts),
        stage=arguments.stage,
    )


def run_plan(arguments: argparse.Namespace) -> int:
    """Print what filling would need."""
    import json

    from trainer.errors import UsageError
    from trainer.teacher_server.planning import plan

    if arguments.tasks < 1:
        raise UsageError(f"--tasks is {arguments.tasks}; expected at least 1")
    found = plan(
        arguments.models,
        _request(arguments),
        tasks=arguments.tasks,
        trial_s=arguments.trial_s,
    )
    print(json.dumps(found.as_json(), indent=2) if arguments.json else "\n".join(found.lines()))
    return 0


def run_cache(arguments: argparse.Namespace) -> int:
    """Fill the missing cells."""
    from trainer.engine.signals import AFTER_BATCH, stop_on_signals
    from trainer.teacher_server import ranks
    from trainer.teacher_server.fill import fill

    request = _request(arguments)
    here = ranks.place()
    say_where(here, request.articles, request.impressions)
    here.say(f"part {request.part[0]}/{request.part[1]}, {request.compute} on {request.device}")
    with stop_on_signals(boundary=AFTER_BATCH) as stop:
        cells = fill(arguments.models, request, here.say, stop=stop)
    here.say(f"done: {cells} cells filled; the others were there already")
    return 0


def say_where(here: "Place", *sets: "ShardSet | None") -> None:
    """Print where new columns of sets at a URL are written."""
    for shard_set in sets:
        if shard_set is not None and shard_set.mirror is not None:
            here.say(
                f"missing columns of {shard_set.mirror.url} are written to "
                f"{shard_set.columns_dir}; the cache never removes them"
            )


def run_status(arguments: argparse.Namespace) -> int:
    """Print one line per teacher; return 1 if a column is incomplete."""
    import json

    from trainer.teacher_server.status import status, status_lines

    request = _request(arguments)
    if arguments.json:
        found = status(arguments.models, request)
        print(json.dumps([column.as_json() for column in found], indent=2))
        return 0 if all(column.state == "complete" for column in found) else 1
    lines, complete = status_lines(arguments.models, request)
    print("\n".join(lines))
    return 0 if complete else 1


def run_verify(arguments: argparse.Namespace) -> int:
    """Check bytes and recompute rows; return 1 on damage or too large errors."""
    from trainer.teacher_server.verify import verify_lines

    for line in verify_lines(arguments.models, _request(arguments), arguments.rows):
        print(line)
    return 0


def run_prune(arguments: argparse.Namespace) -> int:
    """List unused columns, and remove them on ``--yes``."""
    from shards.column_folders import remove_folder
    from shards.reader import ShardSet
    from trainer.errors import UsageError
    from trainer.teacher_server.cells import mb
    from trainer.teacher_server.prune import unnamed_columns
    from trainer.teacher_server.teachers import open_teachers

    named = list(arguments.keep_models)
    for recipe in arguments.recipes:
        named += _teachers_of_recipe(recipe)
    if not named and (arguments.yes or not (arguments.keep_models or arguments.recipes)):
        raise UsageError(
            "no teacher to keep is named: give --keep-models, or --recipes with teachers"
        )
    kept = [teacher.weights_sha256 for teacher in open_teachers(list(dict.fromkeys(named)))]
    sets = [ShardSet.open(path, check_files=False) for path in arguments.sets]
    columns = unnamed_columns(sets, kept)
    for column in columns:
        if arguments.yes:
            remove_folder(column.shard_set, column.folder)
        print(f"{'removed ' if arguments.yes else ''}{column.folder}  {mb(column.bytes)}")
    total = mb(sum(column.bytes for column in columns))
    hint = "" if arguments.yes or not columns else "; remove them with --yes"
    print(f"{len(columns)} columns, {total}{hint}")
    return 0


def run_adopt(arguments: argparse.Namespace) -> int:
    """Write the teacher."""
    from shards.os_errors import naming
    from shards.text_fields import DEFAULT_FIELDS, in_order, parse_fields
    from trainer.teacher_server.teachers import adopt

    fields = parse_fields(arguments.news_text, "--news-text")
    with naming(arguments.out):
        made = adopt(
            arguments.encoder,
            arguments.out,
            pooling=arguments.pooling,
            news_text=fields,
            max_title_tokens=arguments.max_title_tokens,
            max_abstract_tokens=arguments.max_abstract_tokens,
            max_body_tokens=arguments.max_body_tokens,
            max_category_tokens=arguments.max_category_tokens,
        )
    width = made.info["model_settings"]["news_dim"]
    stored = in_order((*DEFAULT_FIELDS, *fields))
    more = "" if stored == DEFAULT_FIELDS else f" --fields {','.join(stored)}"
    print(
        f"{made.folder}: a stage 1 teacher of width {width}; its tokens: "
        f"tnr shards tokenize SET --tokenizer {made.folder}{more}"
    )
    return 0


def _teachers_of_recipe(recipe: str) -> list[str]:
    """Return the teachers that a recipe (name or path) or a run's ``config.json`` names.

    Raises:
        ConfigError: The recipe is not valid.
        DataError: The file is not a run's JSON file.
    """
    from shards.files import read_json
    from trainer.recipes.load import read_recipe

    if recipe.endswith(".json"):
        section = read_json(recipe).get("teachers") or {}
        return [str(model) for model in section.get("models") or ()]
    return [str(model) for model in read_recipe(recipe).get("teachers.models") or ()]
