"""``tnr runs``: the runs in a folder, with state, step and last numbers."""

import argparse
import sys
from pathlib import Path

DEFAULT = Path("runs")
"""Where runs are looked for; it need not be there yet."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    from trainer.monitor.runs import STATES

    parser = subparsers.add_parser(
        "runs",
        help="what has run: state, step and last numbers of every run folder",
        description=(
            "List the run folders in and below FOLDER. A run that says it is running while no "
            "process holds its folder is dead; the command that started it goes on with it. One "
            "whose files are not what a run writes is damaged; which file is said. Where nothing "
            "has run yet, that is said too, with exit code 0."
        ),
        epilog="example: tnr runs runs/demo --state dead stopped",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[DEFAULT], metavar="FOLDER", help="(runs)"
    )
    parser.add_argument("--state", nargs="+", choices=STATES, help="only runs in these states")
    parser.add_argument("--json", action="store_true", help="every number, as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    import msgspec

    from shards.location import shown_text
    from trainer.errors import UsageError
    from trainer.monitor.runs import find_runs, table

    for folder in arguments.folders:
        if not folder.is_dir() and (folder is not DEFAULT or folder.exists()):
            raise UsageError(f"{folder} is not a folder; name one with runs in or below it")
    found = find_runs(arguments.folders)
    for one in found:
        if one.state == "damaged":
            print(f"tnr: warning: {shown_text(one.reason)}", file=sys.stderr)
    if arguments.state:
        found = [one for one in found if one.state in arguments.state]
    if arguments.json:
        # JSON has no NaN: a loss that is none is null.
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    elif found:
        print("\n".join(table(found)))
    else:
        print(f"no runs in {', '.join(map(str, arguments.folders))}")
    return 0
