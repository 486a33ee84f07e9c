"""``tnr teachers``: fill, look at and check the stored outputs of teachers."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.teacher_server.fill import FillRequest


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb and its sub-verbs."""
    parser = subparsers.add_parser(
        "teachers",
        help="the teacher server: precompute what M teachers say, once",
        description=(
            "Run every teacher once over the corpus and store its vectors and scores as columns "
            "beside the shard sets, checked against the teacher's weights, tokenizer and lengths."
        ),
    )
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    cache = verbs.add_parser(
        "cache",
        help="fill the columns of teachers; what is there already is skipped",
        epilog=(
            "example: tnr teachers cache --stage 1 --articles data/articles "
            "--models runs/teacher/copies/step_00000500 runs/teacher/copies/step_00001000"
        ),
    )
    _add_common(cache)
    cache.add_argument(
        "--batch-tokens",
        type=int,
        default=16384,
        help="tokens of a forward pass (default %(default)s)",
    )
    cache.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)"
    )
    cache.set_defaults(run=run_cache)
    status = verbs.add_parser("status", help="a table of teachers and how far they are filled")
    _add_common(status)
    status.set_defaults(run=run_status)
    verify = verbs.add_parser(
        "verify", help="check stored bytes, and recompute a sample of rows with the live teacher"
    )
    _add_common(verify)
    verify.add_argument(
        "--rows", type=int, default=64, help="rows to recompute (default %(default)s)"
    )
    verify.set_defaults(run=run_verify)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage",
        type=int,
        choices=(1, 2),
        required=True,
        help="1: title and body vectors of post-trained teachers; "
        "2: news vectors, user vectors and candidate scores of finetuned ones",
    )
    parser.add_argument("--articles", required=True, metavar="SET", help="article shard set")
    parser.add_argument("--clicks", metavar="SET", help="impression shard set (stage 2)")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="FOLDER", help="exported teachers, in order"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32", "int8"),
        default="float16",
        help="how values are stored; int8 has a scale a vector, and keeps scores in float16",
    )
    parser.add_argument(
        "--compute", choices=("fp32", "bf16"), default="fp32", help="precision of the forward pass"
    )


def _request(arguments: argparse.Namespace) -> "FillRequest":
    import torch

    from shards.reader import ShardSet
    from trainer.errors import UsageError
    from trainer.teacher_server.fill import FillRequest

    if (arguments.clicks is None) == (arguments.stage == 2):
        raise UsageError("--clicks goes with --stage 2, and --stage 2 needs it")
    device = getattr(arguments, "device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
    return FillRequest(
        # Only its columns are read, and these are tied to the shards as they were.
        articles=ShardSet.open(arguments.articles, check_files=False),
        impressions=ShardSet.open(arguments.clicks) if arguments.clicks else None,
        dtype=arguments.dtype,
        compute=arguments.compute,
        batch_tokens=getattr(arguments, "batch_tokens", 16384),
        device=device,
    )


def run_cache(arguments: argparse.Namespace) -> int:
    """Fill what is missing."""
    from functools import partial

    from trainer.teacher_server.fill import fill

    request = _request(arguments)
    for shard_set in (request.articles, request.impressions):
        if shard_set is not None and shard_set.mirror is not None:
            print(
                f"columns of {shard_set.mirror.url} that are not there are written to"
                f" {shard_set.columns_dir}; they stay when the cache makes room"
            )
    cells = fill(arguments.models, request, partial(print, flush=True))
    print(f"done: {cells} cells filled, the rest was there")
    return 0


def run_status(arguments: argparse.Namespace) -> int:
    """Print a line a teacher; exit 1 while something is missing."""
    from trainer.teacher_server.status import status_lines

    lines, complete = status_lines(arguments.models, _request(arguments))
    print("\n".join(lines))
    return 0 if complete else 1


def run_verify(arguments: argparse.Namespace) -> int:
    """Check bytes and recompute rows; exit 1 on damage or on an error above the stored
    precision."""
    from trainer.teacher_server.status import verify_lines

    for line in verify_lines(arguments.models, _request(arguments), arguments.rows):
        print(line)
    return 0
