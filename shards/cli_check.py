"""``tnr shards index`` and ``tnr shards verify``."""

import argparse
import sys
from typing import Any

from shards.remote import folder_argument


def register(verbs: Any) -> None:
    """Add both to the verbs of ``tnr shards``."""
    _register_index(verbs)
    _register_verify(verbs)


def _register_index(verbs: Any) -> None:
    parser = verbs.add_parser(
        "index",
        help="make the indexes of a shard set again from its tars",
        description="Make again every index that is missing or does not fit its tar.",
        epilog="example: tnr shards index sets/news",
    )
    parser.add_argument("set", type=folder_argument, metavar="SET", help="folder of the shard set")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> int:
    from shards.reindex import rebuild_indexes

    written = rebuild_indexes(arguments.set)
    print(f"{arguments.set}: {'wrote ' + ', '.join(written) if written else 'all indexes fit'}")
    return 0


def _register_verify(verbs: Any) -> None:
    parser = verbs.add_parser(
        "verify",
        help="check every byte of shard sets",
        description="Check files, sha256, tar structure, indexes and checksums of shard sets and"
        " of the columns beside them; names every damage found. Exit code 1 if there is any.",
        epilog="example: tnr shards verify sets/news sets/dev",
    )
    parser.add_argument(
        "sets", nargs="+", type=folder_argument, metavar="SET", help="folders of shard sets"
    )
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from shards.column_reader import verify_column_folders
    from shards.reader import ShardSet
    from shards.verify import verify_set

    damaged = 0
    for folder in arguments.sets:
        found = verify_set(folder)
        for problem in found.problems:
            print(f"{folder}: {problem}", file=sys.stderr)
        damaged += not found.ok
        if found.ok:
            shards = len(found.manifest.shards)
            print(f"{folder}: {shards:,} shards, {found.manifest.num_rows:,} samples, all intact")
            problems, intact = verify_column_folders(ShardSet.open(folder))
            for line in problems:
                print(f"{folder}: {line}", file=sys.stderr)
            damaged += bool(problems)
            if intact:
                print(f"{folder}: columns intact: {', '.join(intact)}")
        else:
            print(f"{folder}: {len(found.problems)} problems", file=sys.stderr)
    return 1 if damaged else 0
