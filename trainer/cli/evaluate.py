"""``tnr evaluate``: measure a model or a baseline on a labelled click log by MIND's metrics."""

from __future__ import annotations

import argparse

from shards.numbers import real, seed, whole
from trainer.cli.settings import add_device

TIES = (
    "Among tied scores, the later candidate comes first. MIND's own script sorts in NumPy's "
    "unstable order, so with ties MRR and nDCG may differ from its numbers; AUC is equal."
)
"""The rule for tied scores, for the help of commands that measure."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "evaluate",
        help="AUC, MRR, nDCG@5 and nDCG@10 of a model or a baseline",
        description=(
            "Encode the articles that a labelled click log names, score its impressions and "
            "measure the ranking as MIND does: per impression, then the mean over impressions. "
            f"{TIES} "
            "Several processes (torchrun, accelerate launch) share articles and impressions."
        ),
        epilog=(
            "example: tnr evaluate runs/student/export --articles data/articles --clicks data/dev "
            "--out runs/student/evaluation.json"
        ),
    )
    parser.add_argument(
        "export", nargs="?", metavar="EXPORT", help="folder of an exported, finetuned model"
    )
    parser.add_argument(
        "--baseline",
        choices=("random", "popularity"),
        help="measure a baseline instead of a model; popularity counts clicks in --train-clicks",
    )
    add_log_options(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="also write the whole record as JSON, and next to it the metrics of every impression",
    )
    parser.add_argument(
        "--train-clicks",
        metavar="SET",
        help="training click log: adds metrics split by whether the news was seen in training",
    )
    parser.add_argument(
        "--train-since",
        metavar="DATE",
        help="start of the training log (date or time), as in data.clicks_since",
    )
    parser.add_argument(
        "--train-until",
        metavar="DATE",
        help="end of the training log (date or time, exclusive), as in data.clicks_until",
    )
    parser.add_argument(
        "--since",
        metavar="DATE",
        help=(
            "measure impressions from this date or time on, such as 2019-11-14 (UTC; times "
            "without a zone, as in MIND, are taken as UTC)"
        ),
    )
    parser.add_argument(
        "--until", metavar="DATE", help="measure impressions before this date or time"
    )
    parser.add_argument("--name", help="name in reports (default: the run's folder name)")
    parser.add_argument(
        "--role",
        choices=("teacher", "student", "plain", "baseline", "other"),
        default="other",
        help="role in reports; plain: finetuned without teachers (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="number of the repetition (default %(default)s)"
    )
    parser.add_argument(
        "--speed-seconds",
        type=real(0, 1e6),
        default=1.0,
        metavar="S",
        help=(
            "seconds to spend on measuring the encoding speed; 0: do not measure (default "
            "%(default)s)"
        ),
    )
    parser.set_defaults(run=run)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for data and precision, which `tnr predict` shares."""
    parser.add_argument("--articles", required=True, metavar="SET", help="article shard set")
    parser.add_argument("--clicks", required=True, metavar="SET", help="impression shard set")
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="precision of the forward pass (default %(default)s)",
    )
    parser.add_argument(
        "--batch-tokens",
        type=whole(1),
        default=16384,
        metavar="N",
        help="tokens per forward pass, padding included (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the four metrics and write the record."""
    from pathlib import Path

    from trainer.cli.writing import make_folder_of, writing
    from trainer.errors import UsageError
    from trainer.evaluate.evaluate import (
        EvaluateOptions,
        evaluate_baseline,
        evaluate_model,
        summary,
    )
    from trainer.evaluate.sharded import start_ranks
    from trainer.hardware import pick_device

    if (arguments.export is None) == (arguments.baseline is None):
        raise UsageError("give either an exported model or --baseline, not both")
    if arguments.baseline is None:
        pick_device(arguments.device)
    options = EvaluateOptions(
        name=arguments.name,
        role=arguments.role,
        seed=arguments.seed,
        device=arguments.device,
        precision=arguments.precision,
        batch_tokens=arguments.batch_tokens,
        train_clicks=arguments.train_clicks,
        train_since=arguments.train_since,
        train_until=arguments.train_until,
        since=arguments.since,
        until=arguments.until,
        speed_s=arguments.speed_seconds,
        progress=True,
    )
    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        make_folder_of(out)
    with start_ranks() as ranks:
        if arguments.baseline is None:
            found = evaluate_model(
                arguments.export, arguments.articles, arguments.clicks, options, ranks
            )
        elif ranks.is_main:  # only one process computes baselines
            found = evaluate_baseline(
                arguments.baseline, arguments.articles, arguments.clicks, options
            )
        else:
            found = None
    if found is None:
        return 0
    summary(found.record)
    if out is not None:
        with writing(out):
            found.write(out)
        print(f"  record: {out}")
    return 0
