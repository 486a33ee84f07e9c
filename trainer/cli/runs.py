"""``tnr runs``: list the runs in a folder with state, step and last numbers."""

import argparse
import sys
from pathlib import Path

DEFAULT = Path("runs")
"""Default folder of runs, which need not exist yet."""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    from trainer.monitor.runs import STATES

    parser = subparsers.add_parser(
        "runs",
        help="list run folders with state, step and last numbers",
        description=(
            "List the run folders in and below FOLDER. If a run's files say that it is running, "
            "but no process holds its folder, the run is dead; the command that started it "
            "continues it. If a run's files are not valid, the run is damaged, and the broken "
            "file is named. If there are no runs yet, a line says so, with exit code 0."
        ),
        epilog="example: tnr runs runs/demo --state dead stopped",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[DEFAULT], metavar="FOLDER", help="(runs)"
    )
    parser.add_argument("--state", nargs="+", choices=STATES, help="list only runs in these states")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    import msgspec

    from shards.location import shown_text
    from trainer.errors import UsageError
    from trainer.monitor.runs import find_runs, table

    for folder in arguments.folders:
        if not folder.is_dir() and (folder is not DEFAULT or folder.exists()):
            raise UsageError(f"{folder} is not a folder; name a folder with runs in or below it")
    found = find_runs(arguments.folders)
    for one in found:
        if one.state == "damaged":
            print(f"tnr: warning: {shown_text(one.reason)}", file=sys.stderr)
    if arguments.state:
        found = [one for one in found if one.state in arguments.state]
    if arguments.json:
        # JSON has no NaN: a loss that is NaN becomes null.
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    elif found:
        print("\n".join(table(found)))
    else:
        print(f"no runs in {', '.join(map(str, arguments.folders))}")
    return 0
