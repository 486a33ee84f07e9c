"""``tnr score``: score any prediction file against a labelled log by MIND's four metrics."""

from __future__ import annotations

import argparse
import sys

from trainer.cli.evaluate import TIES


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "score",
        help="score a prediction file against a labelled behaviors.tsv",
        description=(
            "Score a prediction file, from this project or any other, as MIND's own procedure "
            "does: equal ranks tie, missing lines at the end count as all ranks 1, and "
            f"impressions without candidates are skipped. {TIES}"
        ),
        epilog="example: tnr score prediction.zip MINDsmall_dev/behaviors.tsv",
    )
    parser.add_argument("prediction", metavar="PREDICTION", help="prediction.zip or prediction.txt")
    parser.add_argument(
        "behaviors",
        metavar="BEHAVIORS",
        help=("labelled behaviors.tsv, or a folder or zip that contains it"),
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the four metrics to four decimals."""
    from trainer.errors import DataError
    from trainer.evaluate.prediction import score_prediction

    scored = score_prediction(arguments.prediction, arguments.behaviors)
    metrics = scored.metrics
    if not metrics.num_impressions:
        raise DataError(
            f"{arguments.behaviors} has no impression with a clicked and an unclicked candidate, "
            "so no metric is defined"
        )
    print(f"AUC:{metrics.auc:.4f}")
    print(f"MRR:{metrics.mrr:.4f}")
    print(f"nDCG@5:{metrics.ndcg5:.4f}")
    print(f"nDCG@10:{metrics.ndcg10:.4f}")
    if metrics.num_skipped:
        _warn(
            f"{metrics.num_skipped:,} impressions have only clicked or only unclicked candidates "
            "and were skipped; MIND's own procedure fails on them"
        )
    if scored.num_missing:
        _warn(
            f"the last {scored.num_missing:,} impressions have no line; they count as all ranks 1"
        )
    if scored.has_more:
        _warn("the prediction has lines after the log's last impression; they were not read")
    return 0


def _warn(what: str) -> None:
    print(f"tnr: warning: {what}", file=sys.stderr)
