"""``tnr predict``: write MIND's prediction file of a model for a click log."""

from __future__ import annotations

import argparse
import sys

from trainer.cli.evaluate import add_log_options


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "predict",
        help="write a model's prediction.zip for MIND",
        description=(
            "Score every impression of a click log, with or without labels, and write the ranks "
            "of its candidates as MIND's prediction.txt in a zip. The file is checked after "
            "writing."
        ),
        epilog=(
            "example: tnr predict runs/student/export --articles data/articles --clicks data/test "
            "--out prediction.zip"
        ),
    )
    parser.add_argument("export", metavar="EXPORT", help="folder of an exported, finetuned model")
    add_log_options(parser)
    parser.add_argument(
        "--out", default="prediction.zip", metavar="FILE", help="zip to write (default %(default)s)"
    )
    parser.add_argument(
        "--behaviors",
        metavar="LOG",
        help=(
            "the behaviors.tsv that the set was built from (or a folder or zip that contains "
            "it): impressions that the build refused then get a line too, with all candidates "
            "tied"
        ),
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict and write the zip."""
    from pathlib import Path

    from trainer.cli.writing import make_folder_of, writing
    from trainer.evaluate.evaluate import EvaluateOptions, make_ready
    from trainer.evaluate.pairs import open_click_log
    from trainer.evaluate.prediction import write_prediction
    from trainer.evaluate.refused import log_lines, with_refused
    from trainer.evaluate.sharded import score_all, start_ranks
    from trainer.export.folder import load_export
    from trainer.hardware import pick_device

    pick_device(arguments.device)
    options = EvaluateOptions(
        device=arguments.device,
        precision=arguments.precision,
        batch_tokens=arguments.batch_tokens,
        speed_s=0.0,
        progress=True,
    )
    out = Path(arguments.out)
    make_folder_of(out)
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
    if scored is None:  # only rank 0 writes
        return 0
    num, ids = log.clicks.num_impressions, log.ids()
    if arguments.behaviors is not None:
        scored = with_refused(scored, ids, arguments.behaviors)
        ids = (one for one, _ in log_lines(arguments.behaviors))
    with writing(out):
        write_prediction(out, ids, *scored, progress=True)
    lines = len(scored.offsets) - 1
    print(f"{out}: {lines:,} impressions, {len(scored.scores):,} candidates, checked")
    refused = sum(log.impressions.manifest.refused.values())
    if lines > num:
        print(f"  {lines - num:,} of them were refused by the build; their candidates tie")
    elif refused:
        print(
            f"tnr: warning: {refused:,} of the log's {num + refused:,} lines were refused when "
            f"{log.impressions.path} was built and have no line in the prediction, but MIND's "
            "scoring asks for every line; name the log with --behaviors to give them one",
            file=sys.stderr,
        )
    return 0
