"""``tnr shards stats`` and ``tnr shards show``."""

import argparse
import json
from typing import Any

from shards.errors import UsageError
from shards.manifest import ARTICLES
from shards.remote import set_argument


def register(verbs: Any) -> None:
    """Add both to the verbs of ``tnr shards``."""
    _register_stats(verbs)
    _register_show(verbs)


def _register_stats(verbs: Any) -> None:
    parser = verbs.add_parser(
        "stats",
        help="counts, lengths and categories of a shard set",
        description="Count samples, lengths in words, categories, refused rows, clicks.",
        epilog="example: tnr shards stats sets/news",
    )
    parser.add_argument(
        "set", type=set_argument, metavar="SET", help="folder or URL of the shard set"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_stats)


def _stats(arguments: argparse.Namespace) -> int:
    from shards.stats import compute_stats

    stats = compute_stats(arguments.set)
    if arguments.json:
        print(json.dumps(stats.to_dict(), ensure_ascii=False, indent=2))
    else:
        print(stats.table())
    return 0


def _register_show(verbs: Any) -> None:
    parser = verbs.add_parser(
        "show",
        help="print one sample",
        description="Print the sample of a row as JSON.",
        epilog="example: tnr shards show sets/dev 12 --articles sets/news",
    )
    parser.add_argument(
        "set", type=set_argument, metavar="SET", help="folder or URL of the shard set"
    )
    parser.add_argument("row", type=int, metavar="ROW", help="row number, from 0")
    parser.add_argument(
        "--articles",
        type=set_argument,
        metavar="D",
        help="with an impression: the article set, to print titles instead of row numbers",
    )
    parser.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    from shards.reader import ShardSet

    shard_set = ShardSet.open(arguments.set)
    if not 0 <= arguments.row < shard_set.num_rows:
        raise UsageError(
            f"{arguments.set} has no row {arguments.row}; its rows are 0 to"
            f" {shard_set.num_rows - 1}"
        )
    sample = shard_set.sample(arguments.row)
    if arguments.articles is not None:
        if shard_set.kind == ARTICLES:
            raise UsageError(f"--articles is for impressions; {arguments.set} holds articles")
        articles = ShardSet.open(arguments.articles, kind=ARTICLES)
        if articles.fingerprint != shard_set.manifest.articles_fingerprint:
            raise UsageError(
                f"{arguments.articles} is not the article set that {arguments.set} was built with"
            )
        for name in ("history", "candidates"):
            sample[name] = [articles.sample(row)["title"] for row in sample[name]]
    print(json.dumps(sample, ensure_ascii=False, indent=2))
    return 0
