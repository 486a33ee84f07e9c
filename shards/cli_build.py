"""Define ``tnr shards build``."""

import argparse
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.fields import FIELD_NAMES, ArticleFields
from shards.manifest import DEFAULT_SAMPLES_PER_SHARD
from shards.numbers import real, whole
from shards.remote import set_argument
from shards.set_kinds import kind_named
from shards.sources import DEFAULT_MAX_REFUSED, FORMATS

_BUILD_EPILOG = """\
examples:
  tnr shards build --articles news.jsonl.gz --out sets/news --body-field text
  tnr shards build --articles MINDlarge_train.zip MINDlarge_dev.zip --out sets/news
  tnr shards build --clicks MINDlarge_dev.zip --article-set sets/news --out sets/dev

A field is a key or a path: headline.main, authors.0, or paragraphs selected from a list:
'document[name=body_par_*].value'. Refused rows are listed in OUT/refused.jsonl with file, line and
reason; notes on impressions that are kept are listed in OUT/noted.jsonl. Building again from the
same inputs with the same options does nothing and exits 0; a killed build continues where it
stopped.

Texts are made uniform (Unicode NFC, invisible characters removed, white space), each rule counted.
An article with the title and body of an earlier one is dropped; OUT/duplicates.jsonl maps its id to
the earlier row, and click logs that name the id get that row.

Limits: 16 MiB per row, 500 levels of JSON, 1,024 characters per id, 1,000,000 blank lines in a row;
an unpacked gzip file or zip member: 64 MiB or 200 times its packed size, whichever is more.
"""

_ARTICLE_OPTIONS = ("bodies", "format", "no_normalise", "keep_duplicates", "near_duplicates")


def register(verbs: Any) -> None:
    """Add ``build`` to the verbs of ``tnr shards``."""
    parser = verbs.add_parser(
        "build",
        help="make a shard set from articles or click logs",
        description="Turn articles, or click logs about them, into a shard set.",
        epilog=_BUILD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_inputs(parser)
    _add_article_options(parser.add_argument_group("with --articles"))
    parser.set_defaults(run=_build)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--articles",
        nargs="+",
        type=Path,
        metavar="F",
        help="JSON lines, CSV, TSV (all may be gzipped), Parquet, or MIND folders, zips and"
        " news.tsv; files, not pipes, because they are read more than once; an article repeated in"
        " a later input is taken once",
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
        type=set_argument,
        metavar="SET",
        help="with --clicks: folder or URL of the article set whose articles the log names",
    )
    parser.add_argument(
        "--history-order",
        choices=("oldest-first", "newest-first"),
        help="with --clicks: order of the log's histories (default: oldest-first, as in MIND); the"
        " set stores them oldest first, and a model that reads fewer clicks reads the newest",
    )
    parser.add_argument(
        "--samples-per-shard",
        type=whole(),
        default=DEFAULT_SAMPLES_PER_SHARD,
        metavar="N",
        help="samples in every shard but the last (default: %(default)s)",
    )
    parser.add_argument(
        "--max-refused",
        type=real(),
        default=DEFAULT_MAX_REFUSED,
        metavar="SHARE",
        help="largest share of bad rows before the build fails (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=whole(most=4096),
        default=1,
        metavar="P",
        help="number of processes; the set is the same for any number (default: %(default)s)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace an existing shard set in OUT, together with all its columns",
    )


def _add_article_options(group: Any) -> None:
    group.add_argument(
        "--bodies",
        type=Path,
        metavar="F",
        help="a second file with ids and bodies, for articles without a body",
    )
    group.add_argument("--format", choices=FORMATS, help="format of the inputs (default: by name)")
    for name in FIELD_NAMES:
        group.add_argument(
            f"--{name}-field",
            metavar="PATH",
            help=f"path of the {name} in inputs other than MIND's (default: {name})",
        )
    group.add_argument("--no-normalise", action="store_true", help="leave texts unchanged")
    group.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep articles with the title and body of another",
    )
    group.add_argument(
        "--near-duplicates",
        action="store_true",
        help="count near-duplicates of earlier articles; none is dropped (takes half as long"
        " again)",
    )


def _build(arguments: argparse.Namespace) -> int:
    paths = {name: getattr(arguments, f"{name}_field") for name in FIELD_NAMES}
    article_set: Path | str | None = arguments.article_set
    if arguments.clicks:
        unfit = [f"--{name}-field" for name, path in paths.items() if path is not None]
        given = {name: getattr(arguments, name) for name in _ARTICLE_OPTIONS}
        unfit += [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
        if unfit:
            raise UsageError(f"{unfit[0]} belongs to --articles, not to --clicks")
        if article_set is None:
            raise UsageError("--clicks needs --article-set: the articles that the log names")
    elif arguments.history_order is not None:
        raise UsageError("--history-order belongs to --clicks, not to --articles")
    elif article_set is not None:
        raise UsageError("--article-set belongs to --clicks, not to --articles")

    from shards.build import build_articles, build_impressions

    options: dict[str, Any] = {
        "samples_per_shard": arguments.samples_per_shard,
        "max_refused": arguments.max_refused,
        "processes": arguments.processes,
        "force": arguments.force,
    }
    if article_set is not None:
        if arguments.history_order is not None:
            options["history_order"] = arguments.history_order
        result = build_impressions(arguments.clicks, article_set, arguments.out, **options)
    else:
        result = build_articles(
            arguments.articles,
            arguments.out,
            fields=ArticleFields(**paths),
            bodies=arguments.bodies,
            input_format=arguments.format,
            normalise=not arguments.no_normalise,
            keep_duplicates=arguments.keep_duplicates,
            near_duplicates=arguments.near_duplicates,
            **options,
        )
    _print_result(result)
    return 0


def _print_result(result: Any) -> None:
    from shards.publish import NOTED_NAME
    from shards.sources import UTF8_REMEDY

    shard_set, manifest = result.shard_set, result.shard_set.manifest
    if result.already_built:
        print(f"{shard_set.path} is already built from these inputs with these options")
    print(
        f"{shard_set.path}: {shard_set.num_rows:,} {shard_set.kind} in {shard_set.num_shards:,}"
        f" shards, fingerprint {shard_set.fingerprint[:12]}"
    )
    counts = {name: count for name, count in manifest.counts.items() if name != "written" and count}
    print("  " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    for note in kind_named(shard_set.kind).notes(result):
        print(f"  note: {note}")
    if (shard_set.path / NOTED_NAME).exists():
        print(f"  notes on rows that were kept are listed in {shard_set.path / NOTED_NAME}")
    if manifest.refused:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
        print(f"  refused: {reasons} (listed in {shard_set.path / 'refused.jsonl'})")
    if "bad UTF-8" in manifest.refused:
        print(f"  note: {UTF8_REMEDY}")
