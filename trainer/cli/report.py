"""``tnr report``: a table and a plot over evaluations."""

from __future__ import annotations

import argparse
import sys


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "report",
        help="a table over evaluations, and a plot of quality against speed",
        description=(
            "Put evaluations side by side: mean and standard deviation over those of one name, and "
            "what each distilled student gained over the plainly finetuned model of its depth."
        ),
        epilog=(
            "example: tnr report runs/mind/evaluations/*.json --out report.md "
            "--plot quality_speed.png"
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
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; write the report and the plot where asked."""
    from pathlib import Path

    from shards.files import atomic_file
    from trainer.evaluate.plot import PlotUnavailable, plot_quality_speed
    from trainer.evaluate.report import (
        make_rows,
        read_ceilings,
        read_evaluations,
        table,
        text_report,
    )

    records = read_evaluations(arguments.evaluations)
    ceilings = read_ceilings(arguments.ceiling) if arguments.ceiling else []
    rows = make_rows(records)
    shown = table(rows, ceilings)
    print(shown)
    if arguments.out:
        out = Path(arguments.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out, "w") as file:
            file.write(text_report(rows, records, shown))
        print(f"report: {out}")
    if arguments.plot:
        try:
            drawn = plot_quality_speed(rows, arguments.plot, ceilings)
        except PlotUnavailable as error:
            # The numbers are what matters: a missing extra must not fail a pipeline at its end.
            print(f"tnr: warning: {error}", file=sys.stderr)
        else:
            print(f"plot of {drawn} models: {arguments.plot}")
    return 0
