"""``tnr recommend``: show what a model recommends for a history, with titles."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from shards.errors import one_line
from shards.location import shown_line
from shards.numbers import whole
from trainer.cli.settings import add_device

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from trainer.evaluate.readers import Reader
    from trainer.evaluate.recommend import Recommendations, Recommended

_LONGEST_TEXT = 100


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = subparsers.add_parser(
        "recommend",
        help="show what a model recommends for a history, a user or an impression, with titles",
        description=(
            "Rank articles for one user and print the history and the best articles with their "
            "titles. The user is given by article ids (oldest first), by an impression of a "
            "click log, or by a user id of a log, at the user's latest impression; without any "
            "of these, the user has an empty history. Articles in the history are left out."
        ),
        epilog=(
            "examples: tnr recommend runs/student/export --articles data/articles --history N12 N7"
            "; tnr recommend runs/student/export --articles data/articles --clicks data/dev "
            "--impression 0 --from-impression"
        ),
    )
    parser.add_argument("export", metavar="EXPORT", help="folder of an exported, finetuned model")
    parser.add_argument("--articles", required=True, metavar="SET", help="article shard set")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--history",
        nargs="+",
        metavar="ID",
        default=[],
        help=("articles of the history, oldest first"),
    )
    who.add_argument(
        "--impression", type=whole(), metavar="ROW", help="row of an impression in --clicks, from 0"
    )
    who.add_argument("--user", metavar="ID", help="a user id in --clicks")
    parser.add_argument("--clicks", metavar="SET", help="impression shard set")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--candidates", metavar="SET", help="another article set to rank (default: --articles)"
    )
    what.add_argument(
        "--from-impression",
        action="store_true",
        help="rank all candidates of the impression, as tnr evaluate does",
    )
    parser.add_argument(
        "--top",
        type=whole(),
        default=10,
        metavar="K",
        help="number of articles to print (default %(default)s)",
    )
    parser.add_argument(
        "--include-read", action="store_true", help="rank articles of the history, too"
    )
    parser.add_argument(
        "--vectors",
        metavar="FILE",
        help=(
            "keep the vectors of the ranked set in this folder: the next list then needs no "
            "encoding"
        ),
    )
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Rank the articles and print them."""
    import json

    from shards.reader import ShardSet
    from trainer.evaluate.recommend import recommend
    from trainer.export.folder import load_export
    from trainer.hardware import pick_device

    _check(arguments)
    device = pick_device(arguments.device)
    export = load_export(arguments.export)
    # Damage is found when an article is read, and most articles are read only as tokens.
    articles = ShardSet.open(arguments.articles, kind="articles", check_files=False)
    pool = None
    if arguments.candidates is not None:
        pool = ShardSet.open(arguments.candidates, kind="articles", check_files=False)
    found = recommend(
        export,
        articles,
        _reader(articles, arguments),
        pool=pool,
        only_shown=arguments.from_impression,
        top=arguments.top,
        include_read=arguments.include_read,
        vectors=arguments.vectors,
        device=device,
    )
    if arguments.json:
        told = {"export": str(export.folder), "articles": articles.location} | found.to_dict()
        print(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        print(_text(found, str(export.folder)))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from trainer.errors import UsageError

    if arguments.top < 1:
        raise UsageError(f"--top is {arguments.top}; expected at least 1")
    of_log = arguments.impression is not None or arguments.user is not None
    if of_log and arguments.clicks is None:
        raise UsageError("--impression and --user need a click log: name it with --clicks")
    if arguments.clicks is not None and not of_log:
        raise UsageError(
            "--clicks needs --impression ROW or --user ID, to say which user it is for"
        )
    if arguments.from_impression and not of_log:
        raise UsageError("--from-impression needs an impression: --clicks SET --impression ROW")


def _reader(articles: ShardSet, arguments: argparse.Namespace) -> Reader:
    from trainer.evaluate.pairs import open_click_log
    from trainer.evaluate.readers import last_impression_of, reader_of_ids, reader_of_impression

    if arguments.clicks is None:
        return reader_of_ids(articles, arguments.history)
    log = open_click_log(arguments.articles, arguments.clicks)
    row = arguments.impression
    return reader_of_impression(
        log, last_impression_of(log, arguments.user) if row is None else row
    )


def _text(found: Recommendations, model: str) -> str:
    """Format the history and the list for a terminal."""
    lines = [shown_line(f"{model} for {found.about}"), "", *_history(found), ""]
    lines.append(f"The best {len(found.top):,} of {found.num_ranked:,} articles{_left_out(found)}:")
    all_shown = all(line.shown for line in found.top)
    for line, cells in zip(found.top, _cells(map(vars, found.top)), strict=True):
        ranked = [f"{line.rank:>4}", f"{line.score:>9.4f}", *cells]
        lines.append("  ".join(ranked) + _marks(line, all_shown))
    if found.clicked_ranks:
        ranks = "; ".join(f"{rank:,}" for rank in found.clicked_ranks)
        lines += ["", f"Rank of what the user clicked in this impression: {ranks}"]
    if found.all_equal:
        lines += ["", "All scores are equal: the model has no preference for this user."]
    return "\n".join(lines)


def _history(found: Recommendations) -> list[str]:
    if not found.history:
        return ["No history: this is what the model recommends to a user without clicks."]
    unread = len(found.history) - found.num_history_used
    lines = [f"History of {len(found.history):,}, oldest first:"]
    if unread:
        lines = [
            f"History of {len(found.history):,}, oldest first; the model reads the last "
            f"{found.num_history_used:,}, shown here:"
        ]
    return lines + ["  " + "  ".join(cells) for cells in _cells(found.history[unread:])]


def _cells(articles: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Format articles as rows of id, category (if any) and title, each on one line."""
    rows = [
        [one_line(_short(str(article.get(key, "")))) for key in ("id", "category", "title")]
        for article in articles
    ]
    widths = [max((len(row[n]) for row in rows), default=0) for n in (0, 1)]
    return [
        [row[0].ljust(widths[0]), *[row[1].ljust(widths[1])] * (widths[1] > 0), row[2]]
        for row in rows
    ]


def _left_out(found: Recommendations) -> str:
    parts = []
    if found.num_read:
        parts.append(f"{found.num_read:,} read before")
    if found.num_damaged:
        parts.append(f"{found.num_damaged:,} damaged")
    return f" (left out: {', '.join(parts)})" if parts else ""


def _marks(line: Recommended, all_shown: bool) -> str:
    marks = ["clicked"] if line.clicked else ["shown"] * (line.shown and not all_shown)
    marks += ["read before"] * line.read
    return f"  [{', '.join(marks)}]" if marks else ""


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
