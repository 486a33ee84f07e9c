"""Define ``tnr shards columns``."""

import argparse
from typing import Any

from shards.errors import UsageError
from shards.remote import folder_argument


def register(verbs: Any) -> None:
    """Add the verb to ``tnr shards``."""
    parser = verbs.add_parser(
        "columns",
        help="list the columns of a shard set; remove those named with --remove",
        description=(
            "List everything that is stored beside a shard set: name, bytes, filled cells, and"
            " sources. A run that needs a removed column names the command that makes the column"
            " again."
        ),
        epilog="example: tnr shards columns sets/news --remove frozen-states --yes",
    )
    parser.add_argument("set", type=folder_argument, metavar="SET", help="folder of the shard set")
    parser.add_argument(
        "--remove",
        nargs="+",
        default=[],
        metavar="NAME",
        help="a column, such as frozen-states-0123456789ab, or all of a kind, such as frozen-states"
        " (not tokens, clicks, or incomplete columns, which a process may be filling)",
    )
    parser.add_argument("--yes", action="store_true", help="really remove what --remove names")
    parser.set_defaults(run=_columns)


def _columns(arguments: argparse.Namespace) -> int:
    from shards.column_folders import choose, column_folders, remove_folder
    from shards.reader import ShardSet

    if arguments.yes and not arguments.remove:
        raise UsageError("--yes needs --remove, which names the columns to remove")
    columns = column_folders(ShardSet.open(arguments.set, check_files=False))
    if arguments.remove:
        columns = choose(columns, arguments.remove)
    for column in columns:
        if arguments.yes:
            remove_folder(column.shard_set, column.folder)
        done = "removed " if arguments.yes else ""
        print(f"{done}{column.folder.name}  {column.bytes / 1e6:,.1f} MB, {column.state()}")
        if made_from := column.made_from():
            print(f"  {made_from}")
    hint = "; remove them with --yes" if arguments.remove and not arguments.yes else ""
    print(f"{len(columns)} columns, {sum(c.bytes for c in columns) / 1e6:,.1f} MB{hint}")
    return 0
