"""Define ``tnr shards synthesize``: make a world with a known truth."""

import argparse
import dataclasses
import textwrap
from typing import Any

from shards.numbers import real, seed, whole

_REQUIRED = ("articles", "users", "train_impressions", "dev_impressions")
_SIZES = (
    ("articles", "articles of the corpus"),
    ("users", "users of the click log"),
    ("train_impressions", "impressions of the training days, 9 to 14 November 2019"),
    ("dev_impressions", "impressions of the dev day, 15 November 2019"),
    ("test_impressions", "impressions of 16 to 22 November 2019, without labels (0: none)"),
)
_OPTIONS = (
    ("seed", int, "determines the whole world"),
    ("click_articles", int, "number of first articles that appear in the click log"),
    ("title_words", float, "mean words of a title"),
    ("body_words", float, "mean words of a body"),
    ("body_spread", float, "spread of body lengths: standard deviation of their logarithm"),
    ("categories", int, "top-level topics"),
    ("subcategories", int, "subtopics of each category"),
    ("entities", int, "people, places and firms"),
    ("events", int, "stories, each told by some articles"),
    ("event_types", int, "kinds of event"),
    ("subtopic_forms", int, "words that all name one subtopic"),
    ("entity_forms", int, "words that all name one entity"),
    ("event_forms", int, "words that all name one kind of event"),
    ("background_words", int, "words without a subject"),
    ("history_mean", float, "mean clicks in a user's history"),
    ("max_history", int, "longest history"),
    ("empty_histories", float, "share of users without a history"),
    ("candidates_mean", float, "mean candidates of an impression"),
    ("max_candidates", int, "most candidates of an impression"),
    ("popularity_skew", float, "spread of popularity: standard deviation of its logarithm"),
    ("cold_share", float, "share of dev candidates that training never saw"),
    ("interest_share", float, "share of candidates chosen for the user's interests"),
    ("multi_click_share", float, "share of impressions with two clicks or more"),
    ("interests", int, "number of subtopics, and of entities, that interest a user"),
    ("subtopic_strength", float, "log-odds a whole interest in a subtopic adds to a click"),
    ("entity_strength", float, "log-odds a whole interest in an entity adds to a click"),
    ("category_strength", float, "log-odds a whole interest in a category adds to a click"),
    ("quality_strength", float, "log-odds one standard deviation of quality adds to a click"),
    ("noise", float, "temperature of the choice; larger lowers the ceiling"),
)
_FOLLOWS = {
    "click_articles": "0: all, at most 161,013",
    "entities": "0: one for 20 articles, 60 to 20,000",
    "events": "0: one for 4 articles",
    "background_words": "0: one for 2 articles, 500 to 20,000",
    "max_history": "0: 24 times the mean",
    "max_candidates": "0: 8 times the mean",
    "popularity_skew": "0: a mild one, of the news of the day alone",
}


def register(subparsers: Any) -> None:
    """Add ``synthesize`` to the verbs of ``tnr shards``.

    Args:
        subparsers: Result of ``add_subparsers`` of the ``shards`` parser.
    """
    parser = subparsers.add_parser(
        "synthesize",
        help="make a news corpus and a click log with a known truth",
        description=textwrap.dedent(
            """\
            Make a news corpus and a click log with a known truth. Titles and bodies share topics,
            entities and events, each named by several invented words; users click by known
            interests, so truth.json has the best AUC that any model can reach on the dev log.

            Writes OUT/articles.jsonl, OUT/train and OUT/dev (news.tsv and behaviors.tsv in MIND's
            layout), OUT/test without labels if requested, and OUT/truth.json, last. The same
            options give the same bytes. Running a finished command again does nothing.

            --like mind takes sizes and lengths of MIND's large parts (--scale 0.1: a tenth of its
            articles, users and impressions); other options override them."""
        ),
        epilog=textwrap.dedent(
            """\
            examples:
              tnr shards synthesize --out mind-size --like mind
              tnr shards synthesize --out world --articles 6000 --users 2000 \\
                --train-impressions 1200 --dev-impressions 1500 --body-words 100 \\
                --candidates-mean 12 --history-mean 12"""
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    sizes = parser.add_argument_group("sizes: all four, or --like")
    for name, text in _SIZES:
        option = "--" + name.replace("_", "-")
        sizes.add_argument(option, default=argparse.SUPPRESS, type=whole(), metavar="N", help=text)
    sizes.add_argument("--like", choices=("mind",), help="sizes and lengths of MIND's large parts")
    sizes.add_argument(
        "--scale", type=real(), metavar="X", help="with --like: multiplies the sizes (1)"
    )
    parser.add_argument("--gzip", action="store_true", help="write articles.jsonl.gz")
    parser.add_argument(
        "--processes",
        type=whole(most=4096),
        default=1,
        metavar="P",
        help="processes that write articles (1)",
    )
    parser.add_argument("--force", action="store_true", help="replace the files in the folder")
    world = parser.add_argument_group("the world")
    from shards.world.settings import WorldSettings

    defaults = {field.name: field.default for field in dataclasses.fields(WorldSettings)}
    for name, kind, text in _OPTIONS:
        usual = _FOLLOWS.get(name, defaults[name])
        world.add_argument(
            "--" + name.replace("_", "-"),
            type=seed if name == "seed" else whole() if kind is int else real(),
            default=argparse.SUPPRESS,
            metavar="N" if kind is int else "X",
            help=f"{text} ({usual})",
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Make the world that the command line asks for, and print a summary.

    Args:
        args: Parsed options of ``tnr shards synthesize``.

    Raises:
        UsageError: An option is out of range, or the folder holds other files.
    """
    from shards.errors import UsageError
    from shards.world.settings import WorldSettings
    from shards.world.synthesize import synthesize

    if args.processes < 1:
        raise UsageError(f"--processes is {args.processes}; it must be 1 or more")
    given = vars(args)
    fields = [field.name for field in dataclasses.fields(WorldSettings)]
    values = _preset(args) | {name: given[name] for name in fields if name in given}
    for name in _REQUIRED:
        if name not in values:
            raise UsageError(
                f"--{name.replace('_', '-')} is missing; give it, or take all sizes of MIND's with"
                " --like mind"
            )
    truth = synthesize(
        WorldSettings(**values),
        args.out,
        compress=args.gzip,
        processes=args.processes,
        force=args.force,
    )
    print(summary(truth, args.out))


def _preset(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of ``--like`` and ``--scale``."""
    from shards.errors import UsageError
    from shards.world.shape import like_mind

    if args.like is None:
        if args.scale is not None:
            raise UsageError("--scale multiplies the sizes of --like mind, which is not given")
        return {}
    scale = 1.0 if args.scale is None else args.scale
    if not 0 < scale <= 10:
        raise UsageError(f"--scale is {scale:g}; it must be above 0 and at most 10")
    return like_mind(scale)


def summary(truth: dict[str, Any], out: str) -> str:
    """Return a few lines that describe a world for people.

    Args:
        truth: Content of ``truth.json``.
        out: Folder of the world.
    """
    settings, train, dev = truth["settings"], truth["train"], truth["dev"]
    size_mib = sum(truth["files"].values()) / 2**20
    return "\n".join(
        (
            f"{out}: {settings['articles']:,} articles (title {truth['title_words_mean']:.2f}, "
            f"body {truth['body_words_mean']:.2f} words), {size_mib:,.1f} MiB",
            f"train: {train['impressions']:,} impressions, {train['clicks']:,} clicks, "
            f"{train['candidates_mean']:.1f} candidates each",
            f"dev: {dev['impressions']:,} impressions, {dev['clicks']:,} clicks, "
            f"{dev['candidates_mean']:.1f} candidates each, "
            f"{100 * dev['cold_share']:.0f}% of them new",
            f"AUC on dev: best reachable {truth['best_auc']:.4f}, "
            f"knowing all words and the histories {truth['history_auc']:.4f}, "
            f"popularity {truth['popularity_auc']:.4f}, random {truth['random_auc']:.4f}",
        )
    )
