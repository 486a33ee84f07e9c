"""Define ``tnr shards stats`` and ``tnr shards show``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.numbers import seed, whole
from shards.remote import set_argument
from shards.set_kinds import all_kinds, kind_named

_AT_LEAST_ONE = (
    "window_shards",
    "global_batch",
    "user_block",
    "history_length",
    "num_negatives",
    "ranks",
)


def register(verbs: Any) -> None:
    """Add both verbs to ``tnr shards``."""
    _register_stats(verbs)
    _register_show(verbs)


def _register_stats(verbs: Any) -> None:
    parser = verbs.add_parser(
        "stats",
        help="count samples, lengths, duplicates and categories of a shard set",
        description=(
            "Count samples, fields, lengths in words and tokens, duplicates, categories, refused "
            "rows, clicks; suggest maximum lengths by how much text they keep."
        ),
        epilog="examples: tnr shards stats sets/news --plot news.png; "
        "tnr shards stats sets/news --order",
    )
    parser.add_argument(
        "set", type=set_argument, metavar="SET", help="folder or URL of the shard set"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw a PNG (needs matplotlib)"
    )
    parser.add_argument(
        "--order",
        action="store_true",
        help="instead: show, by window, how well a training order mixes the set and how near it"
        " reads",
    )
    parser.add_argument(
        "--window-shards",
        type=whole(),
        metavar="N",
        help="with --order: show only windows of this many shards (data.window_shards)",
    )
    parser.add_argument(
        "--global-batch",
        type=whole(),
        default=32,
        metavar="N",
        help="with --order: samples per step (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="with --order (default: %(default)s)"
    )
    parser.add_argument(
        "--user-block",
        type=whole(),
        metavar="N",
        help="with --order, for a click log: show only blocks of this many clicks of a user "
        "(data.user_block)",
    )
    parser.add_argument(
        "--history-length",
        type=whole(),
        default=50,
        metavar="N",
        help="with --order, for a click log: number of a user's clicks to read (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--num-negatives",
        type=whole(),
        default=4,
        metavar="N",
        help="with --order, for a click log: negatives per click (default: %(default)s)",
    )
    parser.add_argument(
        "--ranks",
        type=whole(),
        default=1,
        metavar="N",
        help="with --order, for a click log: number of ranks that share a batch, to see how many"
        " titles occur on several ranks (data.share_titles)",
    )
    parser.set_defaults(run=_stats)


def _stats(arguments: argparse.Namespace) -> int:
    if arguments.order:
        return _order(arguments)
    if arguments.window_shards is not None:
        raise UsageError("--window-shards needs --order")
    from shards.stats import compute_stats

    stats = compute_stats(arguments.set)
    if arguments.json:
        print(json.dumps(stats.to_dict(), ensure_ascii=False, indent=2))
    else:
        print(stats.table())
    if arguments.plot is not None:
        from shards.plot import plot_stats

        plot_stats(stats, arguments.plot)
        print(f"drawn in {arguments.plot}", file=sys.stderr)
    return 0


def _order(arguments: argparse.Namespace) -> int:
    from shards.reader import ShardSet

    for option in _AT_LEAST_ONE:
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} is {value}, expected at least 1")
    shard_set = ShardSet.open(arguments.set)
    windows = [arguments.window_shards] if arguments.window_shards else [1, 2, 4, 8, 16, 32]
    if not arguments.window_shards:
        windows = [n for n in windows if n < shard_set.num_shards] + [shard_set.num_shards]
    values, table = kind_named(shard_set.kind).orders(shard_set, windows, arguments)
    print(json.dumps(values, indent=2) if arguments.json else table)
    return 0


def _register_show(verbs: Any) -> None:
    parser = verbs.add_parser(
        "show",
        help="print one sample with its tokens",
        description=(
            "Print the sample with a row number or an id as JSON; for an article also the tokens of"
            " each token column, and the text that was cut."
        ),
        epilog="examples: tnr shards show sets/dev 12 --articles sets/news; "
        "tnr shards show sets/news --id N1234",
    )
    parser.add_argument(
        "set", type=set_argument, metavar="SET", help="folder or URL of the shard set"
    )
    parser.add_argument("row", type=whole(), nargs="?", metavar="ROW", help="row number, from 0")
    parser.add_argument("--id", metavar="ID", help="the sample with this id, instead of ROW")
    parser.add_argument(
        "--articles",
        type=set_argument,
        metavar="D",
        help="with a click log: the article set, to print titles instead of row numbers",
    )
    parser.add_argument("--no-tokens", action="store_true", help="print the JSON alone")
    parser.set_defaults(run=_show)


def _show(arguments: argparse.Namespace) -> int:
    from shards.reader import ShardSet
    from shards.show import find_row, token_lines, with_titles

    shard_set = ShardSet.open(arguments.set)
    if (arguments.row is None) == (arguments.id is None):
        raise UsageError("say which sample: either ROW or --id ID")
    row = find_row(shard_set, arguments.id) if arguments.row is None else arguments.row
    if not 0 <= row < shard_set.num_rows:
        raise UsageError(
            f"{arguments.set} has no row {row}; expected a row from 0 to {shard_set.num_rows - 1}"
        )
    sample = shard_set.sample(row)
    if arguments.articles is not None:
        kind = kind_named(shard_set.kind)
        if not kind.row_fields:
            fit = " and ".join(each.name for each in all_kinds() if each.row_fields)
            raise UsageError(f"--articles is for {fit}; {arguments.set} holds {shard_set.kind}")
        articles = ShardSet.open(arguments.articles, kind=kind.rows_of)
        if articles.fingerprint != shard_set.manifest.articles_fingerprint:
            raise UsageError(
                f"{arguments.articles} is not the article set that {arguments.set} was built with"
            )
        sample = with_titles(sample, kind.row_fields, articles)
    print(json.dumps(sample, ensure_ascii=False, indent=2))
    if not arguments.no_tokens:
        for line in token_lines(shard_set, row):
            print(line)
    return 0
