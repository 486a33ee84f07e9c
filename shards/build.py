"""Building shard sets out of articles and click logs.

Rows that cannot be used are refused one by one into ``refused.jsonl`` and counted by reason, and
the build goes on; it fails, and leaves no set, when the share of refused rows passes a limit.
"""

from collections.abc import Sequence
from pathlib import Path

from shards.article_build import ArticleBuild, ArticleOptions
from shards.errors import DataError, UsageError
from shards.fields import FLOAT_TYPES, ArticleFields, rounded
from shards.intake import (
    BuildResult,
    Intake,
    check_options,
    describe,
    failures_explained,
    same_set,
)
from shards.manifest import DEFAULT_SAMPLES_PER_SHARD
from shards.mind import BEHAVIORS_NAME, NEWS_NAME, find_member
from shards.normalise import VERSION
from shards.pool import Workers
from shards.publish import SetPublisher
from shards.reader import ShardSet
from shards.set_kinds.articles import Articles
from shards.set_kinds.impressions import Impressions
from shards.sources import (
    DEFAULT_MAX_REFUSED,
    FORMATS,
    UTF8_REMEDY,
    InputFile,
    guess_format,
)
from shards.spooled_build import work_name

_ROUNDED = (
    "whole numbers beyond it fall together in that type: store ids as 64-bit integers or as text"
)
_ARTICLE_HINTS = {
    **{rounded(kind, bits).reason: _ROUNDED for kind, bits in FLOAT_TYPES.items()},
    "bad UTF-8": UTF8_REMEDY,
    "bad quoting": "a quote in a quoted field is doubled, not escaped by a backslash (pandas:"
    " doublequote=True), and a field is quoted whole",
    "unreadable": "each row's own fault stands there; of times in nanoseconds: round them to"
    " microseconds, or leave the column out of the file",
    "not a JSON object": "JSON lines are one object a line; of an array: jq -c '.[]' IN > OUT",
    "bad JSON": "JSON lines are one object a line; of one array over several lines: jq -c '.[]'"
    " IN > OUT",
    "wrong number of columns": "every row must have as many columns as the first line names; in"
    " MIND's news.tsv 8, without a header (a file with 5 is behaviors.tsv, for --clicks)",
}

OLDEST_FIRST, NEWEST_FIRST = "oldest-first", "newest-first"
HISTORY_ORDERS = (OLDEST_FIRST, NEWEST_FIRST)
"""How a click log may have the histories of its users; MIND has them oldest first."""


def build_articles(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    fields: ArticleFields | None = None,
    bodies: str | Path | None = None,
    input_format: str | None = None,
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
    max_refused: float = DEFAULT_MAX_REFUSED,
    normalise: bool = True,
    keep_duplicates: bool = False,
    near_duplicates: bool = False,
    processes: int = 1,
    force: bool = False,
) -> BuildResult:
    """Build an article set; killed, it goes on where it was when it is called again.

    An article's body is its body, else its abstract, else empty (each counted). Where several
    inputs are given, an article of a former input that comes again with the same content is passed
    over and counted as ``repeated`` (MIND's parts share most of their news); one that comes again
    with other content, or twice in one input, is refused as ``duplicate id``. An article with the
    title and body of an earlier one under another id is dropped and counted as
    ``duplicate_content``; click logs that name it find the earlier one.

    Args:
        inputs: JSON lines, CSV, TSV, Parquet (the first three perhaps ``.gz``), MIND folders, zips
            or ``news.tsv`` files.
        out: The set's folder.
        fields: Names of the fields in inputs that are not MIND's, and in ``bodies``.
        bodies: A second file with ids and bodies, for inputs without bodies.
        input_format: Format of the inputs, where their names do not tell.
        samples_per_shard: Articles in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        normalise: Make texts uniform by the rules of :mod:`shards.normalise`.
        keep_duplicates: Keep articles with the title and body of another.
        near_duplicates: Count articles that are nearly another (:mod:`shards.near_duplicates`).
        processes: How many work at once; the set is the same, byte by byte, for any number.
        force: Replace a shard set that is there, and its columns.

    Raises:
        UsageError: If an option is wrong.
        DataError: If an input is missing or of the wrong form, too many rows are refused, ``out``
            holds another set, or it cannot be written (what is finished is then kept).
        DamageError: If an input cannot be read to its end.
    """
    fields = fields or ArticleFields()
    files = [_article_input(Path(path), input_format) for path in inputs]
    body_file = None if bodies is None else _article_input(Path(bodies), None)
    request = {
        "fields": fields.given(),
        "format": None if _is_named(inputs, files) else input_format,
        "bodies": body_file is not None,
        "samples_per_shard": samples_per_shard,
        "normalise": VERSION if normalise else None,
        "keep_duplicates": keep_duplicates,
        "near_duplicates": near_duplicates,
    }
    everything = [file for file, _ in files + ([body_file] if body_file else [])]
    check_options(everything, samples_per_shard, max_refused, processes)
    source = describe(Articles.name, everything, request)
    if former := same_set(Path(out), source, force):
        return BuildResult(former, already_built=True)
    options = ArticleOptions(
        fields=fields,
        samples_per_shard=samples_per_shard,
        normalise=normalise,
        keep_duplicates=keep_duplicates,
        near_duplicates=near_duplicates,
    )
    publisher = SetPublisher(
        out, Articles.name, source=source, force=force, work=work_name(source["request"])
    )
    with (
        failures_explained(Path(out)),
        publisher,
        Workers(processes) as workers,
        Intake(publisher, everything, max_refused, _ARTICLE_HINTS) as intake,
    ):
        build = ArticleBuild(publisher, workers, intake, options)
        shard_set = build.run(files, body_file)
        return BuildResult(shard_set, already_built=False, unused_fields=tuple(build.unused_fields))


def build_impressions(
    clicks: Sequence[str | Path],
    article_set: ShardSet | str | Path,
    out: str | Path,
    *,
    history_order: str = OLDEST_FIRST,
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
    max_refused: float = DEFAULT_MAX_REFUSED,
    processes: int = 1,
    force: bool = False,
) -> BuildResult:
    """Build an impression set, and the column of clicks beside it; killed, it goes on where it was
    when it is called again.

    Impressions without a click, and such as name candidates that the article set lacks, are
    refused. Of histories, articles that it lacks are left out; that, impressions without a
    negative (kept, and no training units) and times that are none are counted and listed in
    ``noted.jsonl``.

    Args:
        clicks: MIND folders, zips or ``behaviors.tsv`` files. A test log, without labels, is
            accepted; the manifest then says ``labelled: false``.
        article_set: The set whose rows the impressions are to name.
        out: The set's folder.
        history_order: How the log has its histories, of :data:`HISTORY_ORDERS`; the set has them
            oldest first.
        samples_per_shard: Impressions in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        processes: How many work at once; the set is the same, byte by byte, for any number.
        force: Replace a shard set that is there, and its columns.

    Raises:
        UsageError: If an option is wrong.
        DataError: If an input is missing or of the wrong form, too many rows are refused, ``out``
            holds another set, or it cannot be written (what is finished is then kept).
        DamageError: If an input or the article set cannot be read.
    """
    from shards.click_build import HINTS, ImpressionBuild
    from shards.clicks import write_click_column

    if not isinstance(article_set, ShardSet):
        article_set = ShardSet.open(article_set, kind=Articles.name)
    files = [_click_input(Path(path)) for path in clicks]
    if history_order not in HISTORY_ORDERS:
        raise UsageError(
            f"history order {history_order!r} is not one of {', '.join(HISTORY_ORDERS)}"
        )
    options = {"articles": article_set.fingerprint, "samples_per_shard": samples_per_shard}
    if history_order != OLDEST_FIRST:  # sets of MIND's order are what they were before the option
        options["history_order"] = history_order
    check_options(files, samples_per_shard, max_refused, processes)
    source = describe(Impressions.name, files, options)
    former = same_set(Path(out), source, force)
    with failures_explained(Path(out)), Workers(processes) as workers:
        if former is None:
            publisher = SetPublisher(
                out,
                Impressions.name,
                source=source,
                articles_fingerprint=article_set.fingerprint,
                force=force,
                work=work_name(source["request"]),
            )
            with publisher, Intake(publisher, files, max_refused, HINTS) as intake:
                newest_first = history_order == NEWEST_FIRST
                build = ImpressionBuild(
                    publisher, workers, intake, samples_per_shard, newest_first=newest_first
                )
                shard_set = build.run(files, article_set)
        else:
            shard_set = former
        # A build that was stopped just before its column was written completes it here.
        write_click_column(shard_set, workers)
    return BuildResult(shard_set, already_built=former is not None)


def _article_input(path: Path, input_format: str | None) -> tuple[InputFile, str]:
    if input_format is not None and input_format not in FORMATS:
        raise UsageError(f"format {input_format!r} is not one of {', '.join(FORMATS)}")
    if input_format in (None, "mind"):
        found = find_member(path, NEWS_NAME)
        if found is not None:
            return found, "mind"
    file, form = InputFile(path), input_format or guess_format(path)
    if form is None:
        raise DataError(
            f"cannot tell the format of {path} by its name; give --format ({', '.join(FORMATS)})"
        )
    return file, form


def _is_named(inputs: Sequence[str | Path], files: Sequence[tuple[InputFile, str]]) -> bool:
    """Say whether inputs would be read in the same way without ``--format``."""
    try:
        return all(
            _article_input(Path(path), None)[1] == form
            for path, (_, form) in zip(inputs, files, strict=True)
        )
    except DataError:
        return False


def _click_input(path: Path) -> InputFile:
    # A log may have any name when it is given as a file.
    return find_member(path, BEHAVIORS_NAME) or InputFile(path)
