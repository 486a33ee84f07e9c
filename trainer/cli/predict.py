"""``tnr predict``: MIND's prediction file of a model on a click log, with or without labels."""

from __future__ import annotations

import argparse
import sys

from trainer.cli.evaluate import add_log_options


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "predict",
        help="write MIND's prediction.zip of a model",
        description=(
            "Score every impression of a click log, labelled or not, and write the ranks of its "
            "candidates as MIND's prediction.txt inside a zip. The file is checked after writing."
        ),
        epilog=(
            "example: tnr predict runs/student/export --articles data/articles --clicks data/test "
            "--out prediction.zip"
        ),
    )
    parser.add_argument("export", metavar="EXPORT", help="folder of an exported, finetuned model")
    add_log_options(parser)
    parser.add_argument(
        "--out", default="prediction.zip", metavar="FILE", help="the zip (default %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict and write the zip."""
    from pathlib import Path

    from trainer.evaluate.evaluate import EvaluateOptions, make_ready
    from trainer.evaluate.pairs import open_click_log
    from trainer.evaluate.prediction import write_prediction
    from trainer.evaluate.sharded import score_all, start_ranks
    from trainer.export.folder import load_export

    options = EvaluateOptions(
        device=arguments.device,
        precision=arguments.precision,
        batch_tokens=arguments.batch_tokens,
        speed_s=0.0,
        progress=True,
    )
    log = open_click_log(arguments.articles, arguments.clicks)
    with start_ranks() as ranks:
        ready = make_ready(load_export(arguments.export), log, options, ranks)
        scored = score_all(
            ready.model,
            ready.news_NE,
            log.clicks,
            ranks,
            history_length=ready.history_length,
            device=ready.device,
            progress=True,
        )
    if scored is None:  # rank 0 writes
        return 0
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_prediction(out, log.ids(), scored.scores, scored.offsets, progress=True)
    num = log.clicks.num_impressions
    print(f"{out}: {num:,} impressions, {len(scored.scores):,} candidates, checked")
    refused = sum(log.impressions.manifest.refused.values())
    if refused:
        print(
            f"tnr: warning: {refused:,} of the log's {num + refused:,} lines were refused when "
            f"{log.impressions.path} was built and have no line in the prediction, but MIND's "
            "scoring asks for every line; refused.jsonl in that folder names them",
            file=sys.stderr,
        )
    return 0
