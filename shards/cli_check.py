"""Define ``tnr shards index`` and ``tnr shards verify``."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DamageError, UsageError
from shards.fields import FIELD_NAMES, ArticleFields
from shards.manifest import has_manifest
from shards.numbers import real
from shards.sources import DEFAULT_MAX_REFUSED

if TYPE_CHECKING:
    from shards.reader import ShardSet

from shards.remote import folder_argument


def register(verbs: Any) -> None:
    """Add both verbs to ``tnr shards``."""
    _register_index(verbs)
    _register_verify(verbs)


_INDEX_EXAMPLES = """examples:
  tnr shards index sets/news                      make the indexes of a set again
  tnr shards index crawl/tars                     make a set from WebDataset tars made elsewhere
  tnr shards index /mnt/ro/tars --out sets/crawl  the same, if the folder of the tars is read-only
  tnr shards index crawl/tars --member title=title.txt --member body=body.txt

The layout is guessed from the first samples; samples with members that the guess ignores are
refused. Limits: 16 MiB per member, 1,024 characters per key, 1 MiB per extended header.
"""


def _register_index(verbs: Any) -> None:
    parser = verbs.add_parser(
        "index",
        help="make indexes: of a shard set again, or of WebDataset tars made elsewhere",
        description=(
            "For a shard set: remake every index that is missing or does not fit its tar.\n"
            "For WebDataset tars made elsewhere: make a manifest and indexes, so that they become\n"
            "a shard set of articles; the tars are read once and never changed."
        ),
        epilog=_INDEX_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=folder_argument,
        metavar="PATH",
        help="folder of a set or of tars, or tars",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write manifest, indexes and links to the tars there instead of beside the tars",
    )
    parser.add_argument(
        "--member",
        action="append",
        default=[],
        metavar="FIELD=SUFFIX",
        help="members that hold a field: json=json, title=title.txt (default: by their names)",
    )
    for name in FIELD_NAMES:
        parser.add_argument(
            f"--{name}-field",
            metavar="PATH",
            help=f"path of the {name} in the JSON members (default: {name}, or a guess)",
        )
    parser.add_argument(
        "--max-refused",
        type=real(),
        default=DEFAULT_MAX_REFUSED,
        metavar="SHARE",
        help="fail when more than this share of samples is refused (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="index a set of tars again")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> int:
    from shards.foreign import index_tars

    members = dict(map(_member, arguments.member))
    fields = ArticleFields(**{name: getattr(arguments, f"{name}_field") for name in FIELD_NAMES})
    first = arguments.paths[0]
    if len(arguments.paths) == 1 and has_manifest(first) and not arguments.force:
        if arguments.out or members or fields.given():
            raise UsageError(f"{first} is already a shard set; give --force to index it again")
        return _reindex(first)
    made = index_tars(
        arguments.paths,
        arguments.out,
        members=members,
        fields=fields,
        max_refused=arguments.max_refused,
        force=arguments.force,
    )
    _print_indexed(made)
    return 0


def _member(text: str) -> tuple[str, str]:
    name, equals, suffix = text.partition("=")
    if not (name and equals and suffix):
        raise UsageError(f"--member {text!r}: expected FIELD=SUFFIX, for example title=title.txt")
    return name, suffix


def _reindex(folder: Path) -> int:
    from shards.reindex import rebuild_indexes

    written = rebuild_indexes(folder)
    print(f"{folder}: {'wrote ' + ', '.join(written) if written else 'all indexes fit'}")
    return 0


def _print_indexed(made: "ShardSet") -> None:
    manifest = made.manifest
    print(f"{made.path}: {made.num_rows:,} articles in {made.num_shards:,} shards")
    if manifest.layout is not None:
        for member in manifest.layout.members:
            print(f"  {member.field}: members *.{member.suffix}")
        for name, path in manifest.layout.fields.items():
            print(f"  {name}: field {path}")
    for name, count in manifest.counts.items():
        if name not in ("rows", "written", "refused"):
            print(f"  {name}: {count:,}")
    for reason, count in manifest.refused.items():
        print(f"  refused, {reason}: {count:,}")
    if manifest.refused:
        print(f"  each is listed in {made.path / 'refused.jsonl'}")


def _register_verify(verbs: Any) -> None:
    parser = verbs.add_parser(
        "verify",
        help="check every byte of shard sets",
        description="Check files, sha256, tar structure, indexes and checksums of shard sets and"
        " of their columns, and that manifests and columns agree with the samples; list all damage"
        " found. With the article set of a log, also check the rows that the log names. The exit"
        " code is 1 if there is any damage.",
        epilog="example: tnr shards verify sets/news sets/dev",
    )
    parser.add_argument(
        "sets", nargs="+", type=folder_argument, metavar="SET", help="folders of shard sets"
    )
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from shards.column_check import verify_column_folders
    from shards.reader import ShardSet
    from shards.verify import verify_set

    damaged = 0
    articles: dict[str, int] = {}
    verified = []
    for folder in arguments.sets:
        try:
            found = verify_set(folder)
        except DamageError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            damaged += 1
            continue
        articles[found.manifest.fingerprint] = found.manifest.num_rows
        verified.append((folder, found))
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
    for folder, found in verified:
        rows = articles.get(found.manifest.articles_fingerprint or "", found.largest_row + 1)
        if found.largest_row >= rows:
            print(
                f"{folder}: its {found.manifest.kind} name row {found.largest_row} of the article "
                f"set, which has {rows} rows; build it again",
                file=sys.stderr,
            )
            damaged += 1
    return 1 if damaged else 0
