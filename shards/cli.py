"""``tnr shards``: articles and click logs to shard sets, and everything one does with those."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.fields import FIELD_NAMES, ArticleFields
from shards.manifest import ARTICLES, DEFAULT_SAMPLES_PER_SHARD
from shards.sources import DEFAULT_MAX_REFUSED, FORMATS

_BUILD_EPILOG = """\
examples:
  tnr shards build --articles news.jsonl.gz --out sets/news --body-field text
  tnr shards build --articles MINDlarge_train.zip MINDlarge_dev.zip --out sets/news
  tnr shards build --clicks MINDlarge_dev.zip --article-set sets/news --out sets/dev

A field is a key or a path: headline.main, authors.0, or paragraphs picked out of a list:
'document[name=body_par_*].value'. Refused rows are listed in OUT/refused.jsonl with file, line and
reason. Building again from the same inputs with the same options does nothing and exits 0.
"""


def register(subparsers: Any) -> None:
    """Add ``shards`` and its own verbs to the command line."""
    import shards.cli_tokens
    import shards.world.cli

    parser = subparsers.add_parser(
        "shards",
        help="build, check and look into shard sets of articles and clicks",
        description="Articles and click logs to shard sets, and what is derived from them.",
        epilog="Each verb explains itself: tnr shards build --help",
    )
    verbs = parser.add_subparsers(dest="shards_verb", metavar="VERB", required=True)
    _register_build(verbs)
    _register_index(verbs)
    _register_verify(verbs)
    _register_stats(verbs)
    _register_show(verbs)
    shards.cli_tokens.register(verbs)
    shards.world.cli.register(verbs)


def _register_build(verbs: Any) -> None:
    parser = verbs.add_parser(
        "build",
        help="articles or click logs to a shard set",
        description="Turn articles, or click logs about them, into a shard set.",
        epilog=_BUILD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--articles",
        nargs="+",
        type=Path,
        metavar="F",
        help="JSON lines, CSV, TSV (perhaps .gz), Parquet, or MIND folders, zips and news.tsv; an"
        " article that comes again in a later input is taken once",
    )
    what.add_argument(
        "--clicks",
        nargs="+",
        type=Path,
        metavar="F",
        help="MIND folders, zips or behaviors.tsv",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="D", help="folder of the set")
    parser.add_argument(
        "--article-set",
        type=Path,
        metavar="D",
        help="with --clicks: the article set whose articles the log names",
    )
    parser.add_argument(
        "--bodies",
        type=Path,
        metavar="F",
        help="with --articles: a second file with ids and bodies, for articles without",
    )
    parser.add_argument("--format", choices=FORMATS, help="format of --articles (default: by name)")
    for name in FIELD_NAMES:
        parser.add_argument(
            f"--{name}-field",
            metavar="PATH",
            help=f"where the {name} is in inputs other than MIND's (default: {name})",
        )
    parser.add_argument(
        "--samples-per-shard",
        type=int,
        default=DEFAULT_SAMPLES_PER_SHARD,
        metavar="N",
        help="samples in every shard but the last (default: %(default)s)",
    )
    parser.add_argument(
        "--max-refused",
        type=float,
        default=DEFAULT_MAX_REFUSED,
        metavar="SHARE",
        help="largest share of bad rows before the build fails (default: %(default)s)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the shard set that is in OUT, together with all its columns",
    )
    parser.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    paths = {name: getattr(arguments, f"{name}_field") for name in FIELD_NAMES}
    article_set: Path | None = arguments.article_set
    if arguments.clicks:
        unfit = [f"--{name}-field" for name, path in paths.items() if path is not None]
        unfit += [f"--{name}" for name in ("bodies", "format") if getattr(arguments, name)]
        if unfit:
            raise UsageError(f"{unfit[0]} belongs to --articles, not to --clicks")
        if article_set is None:
            raise UsageError("--clicks needs --article-set: the articles that the log names")
    elif article_set is not None:
        raise UsageError("--article-set belongs to --clicks, not to --articles")

    from shards.build import build_articles, build_impressions

    options: dict[str, Any] = {
        "samples_per_shard": arguments.samples_per_shard,
        "max_refused": arguments.max_refused,
        "force": arguments.force,
    }
    if article_set is not None:
        result = build_impressions(arguments.clicks, article_set, arguments.out, **options)
    else:
        result = build_articles(
            arguments.articles,
            arguments.out,
            fields=ArticleFields(**paths),
            bodies=arguments.bodies,
            input_format=arguments.format,
            **options,
        )
    _print_result(result)
    return 0


def _print_result(result: Any) -> None:
    shard_set, manifest = result.shard_set, result.shard_set.manifest
    if result.already_built:
        print(f"{shard_set.path} is already built from these inputs with these options")
    print(
        f"{shard_set.path}: {shard_set.num_rows:,} {shard_set.kind} in {shard_set.num_shards:,}"
        f" shards, fingerprint {shard_set.fingerprint[:12]}"
    )
    counts = {name: count for name, count in manifest.counts.items() if name != "written" and count}
    print("  " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    if manifest.refused:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
        print(f"  refused: {reasons} (listed in {shard_set.path / 'refused.jsonl'})")


def _register_index(verbs: Any) -> None:
    parser = verbs.add_parser(
        "index",
        help="make the indexes of a shard set again from its tars",
        description="Make again every index that is missing or does not fit its tar.",
        epilog="example: tnr shards index sets/news",
    )
    parser.add_argument("set", type=Path, metavar="SET", help="folder of the shard set")
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
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET", help="folders of shard sets")
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


def _register_stats(verbs: Any) -> None:
    parser = verbs.add_parser(
        "stats",
        help="counts, lengths and categories of a shard set",
        description="Count samples, lengths in words, categories, refused rows, clicks.",
        epilog="example: tnr shards stats sets/news",
    )
    parser.add_argument("set", type=Path, metavar="SET", help="folder of the shard set")
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
    parser.add_argument("set", type=Path, metavar="SET", help="folder of the shard set")
    parser.add_argument("row", type=int, metavar="ROW", help="row number, from 0")
    parser.add_argument(
        "--articles",
        type=Path,
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
