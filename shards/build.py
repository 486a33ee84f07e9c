"""Build shard sets from articles and click logs.

Each unusable row is refused, listed in ``refused.jsonl`` and counted by reason, and the build
continues. If the share of refused rows exceeds a limit, the build fails and leaves no set.
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

_ROUNDED = "whole numbers beyond it collide in that type: store ids as 64-bit integers or as text"
_ARTICLE_HINTS = {
    **{rounded(kind, bits).reason: _ROUNDED for kind, bits in FLOAT_TYPES.items()},
    "bad UTF-8": UTF8_REMEDY,
    "bad quoting": "double a quote inside a quoted field, do not escape it by a backslash (pandas:"
    " doublequote=True), and quote whole fields",
    "unreadable": "refused.jsonl has the error of each row; round times in nanoseconds to"
    " microseconds, or leave their column out of the file",
    "not a JSON object": "write one JSON object per line; for an array: jq -c '.[]' IN > OUT",
    "bad JSON": "write one JSON object per line; for one array over several lines: jq -c '.[]'"
    " IN > OUT",
    "wrong number of columns": "every row must have as many columns as the first line; MIND's"
    " news.tsv has 8, without a header (a file with 5 is behaviors.tsv, for --clicks)",
}

OLDEST_FIRST, NEWEST_FIRST = "oldest-first", "newest-first"
HISTORY_ORDERS = (OLDEST_FIRST, NEWEST_FIRST)
"""Orders in which a click log may store the histories of its users; MIND is oldest first."""


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
    """Build an article set; a killed build continues when it is called again.

    An article without a body takes its abstract as body, or else an empty body (each counted). If
    an article of an earlier input occurs again with the same content, the build skips the
    repetition and counts it as ``repeated`` (MIND's parts share most of their news); an article
    with other content under the same id, or a second one in the same input, is refused as
    ``duplicate id``. An article with the title and body of an earlier one under another id is
    dropped and counted as ``duplicate_content``; click logs that name it get the earlier one.

    Args:
        inputs: JSON lines, CSV, TSV (each may be ``.gz``), Parquet, MIND folders, zips or
            ``news.tsv`` files.
        out: The set's folder.
        fields: Names of the fields in ``bodies`` and in inputs other than MIND's.
        bodies: A second file with ids and bodies, for inputs without bodies.
        input_format: Format of the inputs; None derives it from their names.
        samples_per_shard: Number of articles in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        normalise: Make texts uniform by the rules of :mod:`shards.normalise`.
        keep_duplicates: Keep articles with the title and body of another.
        near_duplicates: Count near-duplicates (:mod:`shards.near_duplicates`).
        processes: Number of processes; the set is the same, byte by byte, for any number.
        force: Replace an existing shard set and its columns.

    Raises:
        UsageError: An option is wrong.
        DataError: An input is missing or has the wrong form, too many rows are refused, ``out``
            holds another set, or ``out`` cannot be written (finished parts are then kept).
        DamageError: An input cannot be read to its end.
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
    """Build an impression set and its click column; a second call continues a killed build.

    Impressions without a click, or with candidates that the article set lacks, are refused. Unknown
    articles in histories are left out. These articles, impressions without a negative (kept, but
    not trained on) and unreadable times are counted and listed in ``noted.jsonl``.

    Args:
        clicks: MIND folders, zips or ``behaviors.tsv`` files. A test log, without labels, is
            accepted; the manifest then says ``labelled: false``.
        article_set: The set whose rows the impressions name.
        out: The set's folder.
        history_order: Order of the log's histories, one of :data:`HISTORY_ORDERS`; the set stores
            them oldest first.
        samples_per_shard: Number of impressions in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        processes: Number of processes; the set is the same, byte by byte, for any number.
        force: Replace an existing shard set and its columns.

    Raises:
        UsageError: An option is wrong.
        DataError: An input is missing or has the wrong form, too many rows are refused, ``out``
            holds another set, or ``out`` cannot be written (finished parts are then kept).
        DamageError: An input or the article set cannot be read.
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
    if history_order != OLDEST_FIRST:  # sets in MIND's order keep the fingerprint from before
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
        # If a build was stopped just before it wrote its column, write the column now.
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
            f"cannot tell the format of {path} from its name; give --format ({', '.join(FORMATS)})"
        )
    return file, form


def _is_named(inputs: Sequence[str | Path], files: Sequence[tuple[InputFile, str]]) -> bool:
    """Tell whether the inputs would be read in the same way without ``--format``."""
    try:
        return all(
            _article_input(Path(path), None)[1] == form
            for path, (_, form) in zip(inputs, files, strict=True)
        )
    except DataError:
        return False


def _click_input(path: Path) -> InputFile:
    # A log given as a file may have any name.
    return find_member(path, BEHAVIORS_NAME) or InputFile(path)
