"""``tnr report``: tabulate and plot evaluations, and compare two models."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from shards.numbers import whole

if TYPE_CHECKING:
    from trainer.evaluate.compare import Comparison, Resampled


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "report",
        help="tabulate evaluations, plot quality against speed, compare two models",
        description=(
            "Put evaluations side by side: mean and standard deviation over the evaluations of "
            "each name, confidence intervals over users, and the gain of each distilled student "
            "over the model of the same depth that was finetuned without teachers. Or compare "
            "two models on the same users: difference, interval, and a paired test."
        ),
        epilog=(
            "examples: tnr report runs/mind/evaluations/*.json --out report.md "
            "--plot quality_speed.png; tnr report student.json plain.json --compare"
        ),
    )
    parser.add_argument(
        "evaluations", nargs="+", metavar="EVAL.json", help="records written by tnr evaluate --out"
    )
    parser.add_argument("--out", metavar="FILE", help="also write the report as Markdown")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw AUC against articles per second (needs matplotlib)"
    )
    parser.add_argument(
        "--ceiling",
        metavar="FILE",
        help="truth.json of a synthesized world: adds the best reachable metrics",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--compare",
        action="store_true",
        help="compare the two models of the evaluations: first minus second",
    )
    which.add_argument(
        "--against", metavar="NAME", help="compare every other model with the model of this name"
    )
    parser.add_argument(
        "--resamples",
        type=whole(most=1_000_000),
        metavar="N",
        help="resamples of the users for intervals and tests; 0: no intervals (default: 2000)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the comparisons; write the report and the plot if asked."""
    from pathlib import Path

    from shards.files import atomic_file
    from shards.plot import PlotUnavailable
    from trainer.cli.writing import writing
    from trainer.evaluate.compare import comparison_notes, comparison_text, tell_apart
    from trainer.evaluate.plot import plot_quality_speed
    from trainer.evaluate.report import (
        make_rows,
        read_ceilings,
        read_evaluations,
        repeated_seeds,
        table,
    )
    from trainer.evaluate.text_report import text_report

    records = read_evaluations(arguments.evaluations)
    if arguments.compare:
        records = tell_apart(records)
    for line in repeated_seeds(records):
        print(f"tnr: warning: {line}", file=sys.stderr)
    ceilings = read_ceilings(arguments.ceiling) if arguments.ceiling else []
    resampled, comparisons = _resample(records, arguments)
    rows = make_rows(records, resampled.intervals() if resampled is not None else None)
    shown = table(rows, ceilings)
    print(shown)
    for comparison in comparisons:
        print(f"\n{comparison_text(comparison)}")
    if comparisons:
        print("\n" + "\n".join(comparison_notes(comparisons)))
    if arguments.out:
        out = Path(arguments.out)
        with writing(out), atomic_file(out, "w") as file:
            file.write(text_report(rows, records, shown, resampled, comparisons))
        print(f"report: {out}")
    if arguments.plot:
        try:
            with writing(Path(arguments.plot)):
                drawn = plot_quality_speed(rows, arguments.plot, ceilings)
        except PlotUnavailable as error:
            # A missing extra must not fail a pipeline at its end: the numbers matter more.
            print(f"tnr: warning: {error}", file=sys.stderr)
        else:
            print(f"plot of {drawn} models: {arguments.plot}")
    return 0


def _resample(
    records: list[dict[str, Any]], arguments: argparse.Namespace
) -> tuple[Resampled | None, list[Comparison]]:
    """Resample users for models with results by impression, and run the requested comparisons."""
    from trainer.errors import UsageError
    from trainer.evaluate.bootstrap import RESAMPLES
    from trainer.evaluate.compare import (
        check_can_compare,
        compare,
        pairs_to_compare,
        per_impression_models,
        resample,
    )

    resamples = RESAMPLES if arguments.resamples is None else arguments.resamples
    comparing = arguments.compare or arguments.against is not None
    if resamples < (1 if comparing else 0):
        raise UsageError(
            f"--resamples is {resamples}; a comparison needs at least 1, and some thousands to be "
            "precise"
            if comparing
            else f"--resamples is {resamples}; expected 0 (no intervals) or more"
        )
    pairs = pairs_to_compare(records, arguments.against) if comparing else []
    if not resamples:
        return None, []
    models, lacking = per_impression_models(records)
    for line in lacking:
        print(f"tnr: warning: {line}", file=sys.stderr)
    check_can_compare(pairs, models)
    if models and not comparing and models[0].num_users < 2:
        print(
            "tnr: warning: no intervals: all impressions belong to one user, and intervals are "
            "over users",
            file=sys.stderr,
        )
        return None, []
    if not models:
        return None, []
    resampled = resample(models, resamples)
    return resampled, [compare(resampled, records, *pair) for pair in pairs]
