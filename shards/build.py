"""Building shard sets out of articles and click logs.

Rows that cannot be used are refused one by one into ``refused.jsonl`` and counted by reason, and
the build goes on; it fails, and leaves no set, when the share of refused rows passes a limit.
Memory: an id and a row number for each article, and nothing else that grows with the input.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.fields import ArticleFields, FieldReader, RowError
from shards.intake import (
    BodySpool,
    BuildResult,
    Intake,
    check_options,
    describe,
    same_set,
)
from shards.manifest import ARTICLES, DEFAULT_SAMPLES_PER_SHARD, IMPRESSIONS
from shards.mind import (
    BEHAVIORS_NAME,
    NEWS_NAME,
    find_member,
    has_labels,
    parse_behavior,
    parse_news,
)
from shards.reader import ShardSet
from shards.sources import (
    DEFAULT_MAX_REFUSED,
    FORMATS,
    InputFile,
    Row,
    guess_format,
    read_rows,
    read_tab_separated,
)
from shards.writer import ShardWriter

_REQUIRED = ("id", "title")


def build_articles(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    fields: ArticleFields | None = None,
    bodies: str | Path | None = None,
    input_format: str | None = None,
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
    max_refused: float = DEFAULT_MAX_REFUSED,
    force: bool = False,
) -> BuildResult:
    """Build an article set.

    An article's body is its body, else its abstract, else empty (each counted). Where several
    inputs are given, an article of a former input that comes again with the same content is passed
    over and counted as ``repeated`` (MIND's parts share most of their news); one that comes again
    with other content, or twice in one input, is refused as ``duplicate id``.

    Args:
        inputs: JSON lines, CSV, TSV, Parquet (the first three perhaps ``.gz``), MIND folders, zips
            or ``news.tsv`` files.
        out: The set's folder.
        fields: Names of the fields in inputs that are not MIND's, and in ``bodies``.
        bodies: A second file with ids and bodies, for inputs without bodies.
        input_format: Format of the inputs, where their names do not tell.
        samples_per_shard: Articles in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        force: Replace a shard set that is there, and its columns.

    Raises:
        UsageError: If an option is wrong.
        DataError: If an input is missing or of the wrong form, too many rows are refused, or
            ``out`` holds another set.
        DamageError: If an input cannot be read to its end.
    """
    fields = fields or ArticleFields()
    files = [_article_input(Path(path), input_format) for path in inputs]
    body_file = None if bodies is None else _article_input(Path(bodies), None)
    options = {
        "fields": fields.given(),
        "format": input_format,
        "bodies": body_file is not None,
        "samples_per_shard": samples_per_shard,
    }
    everything = [file for file, _ in files + ([body_file] if body_file else [])]
    source = describe(ARTICLES, everything, options)
    check_options(everything, samples_per_shard, max_refused)
    if former := same_set(Path(out), source, force):
        return BuildResult(former, already_built=True)
    writer = ShardWriter(
        out, ARTICLES, samples_per_shard=samples_per_shard, source=source, force=force
    )
    # The spool's folder is made by the writer.
    with (
        writer,
        BodySpool(writer.folder) as spool,
        Intake(writer, everything, max_refused) as intake,
    ):
        build = _ArticleBuild(intake, fields, spool)
        if body_file is not None:
            build.read_bodies(*body_file)
        for file, form in files:
            build.read(file, form)
        if body_file is not None:
            writer.count("bodies_unused", len(spool) - build.bodies_used)
        intake.check()
        return BuildResult(writer.finish(), already_built=False)


def build_impressions(
    clicks: Sequence[str | Path],
    article_set: ShardSet | str | Path,
    out: str | Path,
    *,
    samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
    max_refused: float = DEFAULT_MAX_REFUSED,
    force: bool = False,
) -> BuildResult:
    """Build an impression set, and the column of clicks beside it.

    Args:
        clicks: MIND folders, zips or ``behaviors.tsv`` files. A test log, without labels, is
            accepted; the manifest then says ``labelled: false``.
        article_set: The set whose rows the impressions are to name.
        out: The set's folder.
        samples_per_shard: Impressions in every shard but the last.
        max_refused: Largest share of rows, 0 to 1, that may be refused.
        force: Replace a shard set that is there, and its columns.

    Raises:
        UsageError: If an option is wrong.
        DataError: If an input is missing or of the wrong form, too many rows are refused, or
            ``out`` holds another set.
        DamageError: If an input or the article set cannot be read.
    """
    from shards.clicks import write_click_column

    if not isinstance(article_set, ShardSet):
        article_set = ShardSet.open(article_set, kind=ARTICLES)
    files = [_click_input(Path(path)) for path in clicks]
    options = {"articles": article_set.fingerprint, "samples_per_shard": samples_per_shard}
    source = describe(IMPRESSIONS, files, options)
    check_options(files, samples_per_shard, max_refused)
    if former := same_set(Path(out), source, force):
        # An earlier build may have been stopped just before its column was written.
        write_click_column(former)
        return BuildResult(former, already_built=True)
    writer = ShardWriter(
        out,
        IMPRESSIONS,
        samples_per_shard=samples_per_shard,
        source=source,
        articles_fingerprint=article_set.fingerprint,
        force=force,
    )
    with writer, Intake(writer, files, max_refused) as intake:
        rows = {str(article["id"]): row for row, article in enumerate(article_set)}
        labelled: bool | None = None
        for file in files:
            labelled = _read_behaviors(intake, file, rows, labelled)
        writer.source["labelled"] = bool(labelled)
        intake.check()
        shard_set = writer.finish()
    write_click_column(shard_set)
    return BuildResult(shard_set, already_built=False)


class _ArticleBuild:
    """The state of one article build: which ids there are, and the bodies from a second file."""

    def __init__(self, intake: Intake, fields: ArticleFields, bodies: BodySpool) -> None:
        self.intake = intake
        self.writer = intake.writer
        self.fields = fields
        self.bodies = bodies
        self.bodies_used = 0
        self._rows: dict[str, int] = {}
        # Eight bytes of each article's content, to tell a repeated article from a changed one.
        self._digests = bytearray()

    def read_bodies(self, file: InputFile, form: str) -> None:
        """Spool the bodies of the second file; the first body of an id counts."""
        reader = FieldReader(self.fields, ("id", "body"))
        needed = reader.required_columns(("id", "body"))
        for row in self.intake.good_rows(file, read_rows(file, form, needed)):
            try:
                found = reader.read(row.record)
                article_id = found.get("id")
                if article_id is None:
                    raise RowError("missing id")
                if article_id in self.bodies:
                    raise RowError("duplicate id")
                if "body" in found:
                    self.bodies.put(article_id, found["body"])
            except RowError as error:
                self.intake.refuse(file, row, error.reason)
            except UnicodeEncodeError:
                self.intake.refuse(file, row, "unpaired surrogate")
        reader.check_all_seen(file.name)

    def read(self, file: InputFile, form: str) -> None:
        """Read one input into the writer."""
        first_row = self.writer.num_rows
        if form == "mind":
            for row in self.intake.good_rows(file, read_tab_separated(file)):
                self._take(file, row, first_row, parse_news)
            return
        reader = FieldReader(self.fields)
        needed = reader.required_columns(_REQUIRED)
        for row in self.intake.good_rows(file, read_rows(file, form, needed)):
            self._take(file, row, first_row, reader.read)
        reader.check_all_seen(file.name)

    def _take(self, file: InputFile, row: Row, first_row: int, parse: Any) -> None:
        try:
            self._add(parse(row.record), first_row)
        except RowError as error:
            self.intake.refuse(file, row, error.reason)
        except UnicodeEncodeError:
            self.intake.refuse(file, row, "unpaired surrogate")

    def _add(self, found: Mapping[str, str], first_row: int) -> None:
        for name in _REQUIRED:
            if name not in found:
                raise RowError(f"missing {name}")
        article_id = found["id"]
        digest = _digest(found)
        known = self._rows.get(article_id)
        if known is not None:
            if known < first_row and self._digests[8 * known : 8 * known + 8] == digest:
                self.writer.count("repeated")
                return
            raise RowError("duplicate id")
        body, origin = self._body(found)
        article = {"id": article_id, "title": found["title"], "body": body}
        article |= {name: text for name, text in found.items() if name not in article}
        self._rows[article_id] = self.writer.add(article)
        self._digests += digest
        if origin is not None:
            self.writer.count(origin)

    def _body(self, found: Mapping[str, str]) -> tuple[str, str | None]:
        """Return the body and the count that says where it is from (None: from its own field)."""
        body = self.bodies.get(found["id"])
        if body is not None:
            self.bodies_used += 1
            return body, "body_from_second_file"
        if "body" in found:
            return found["body"], None
        if "abstract" in found:
            return found["abstract"], "body_from_abstract"
        return "", "body_empty"


def _read_behaviors(
    intake: Intake, file: InputFile, rows: Mapping[str, int], labelled: bool | None
) -> bool | None:
    """Read one click log; return whether logs have labels, as far as that is known by now."""
    ids: set[int | str] = set()
    for row in intake.good_rows(file, read_tab_separated(file)):
        if labelled is None:
            labelled = has_labels(row.record, rows)
        try:
            impression = parse_behavior(row.record, rows, labelled is not False)
            key = _compact(impression.id)
            if key in ids:
                raise RowError("duplicate id")
            ids.add(key)
        except RowError as error:
            intake.refuse(file, row, error.reason)
            continue
        intake.writer.add(impression.to_sample())
        if impression.unknown_history:
            intake.writer.count("unknown_history", impression.unknown_history)
    return labelled


def _compact(text: str) -> int | str:
    """Return an id in a form that takes less memory where it is a plain number."""
    plain = text.isascii() and text.isdigit() and len(text) < 19 and text[0] != "0"
    return int(text) if plain else text


def _digest(found: Mapping[str, str]) -> bytes:
    text = "\0".join(f"{name}\0{found[name]}" for name in sorted(found))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()


def _article_input(path: Path, input_format: str | None) -> tuple[InputFile, str]:
    if input_format is not None and input_format not in FORMATS:
        raise UsageError(f"format {input_format!r} is none of {', '.join(FORMATS)}")
    if input_format in (None, "mind"):
        found = find_member(path, NEWS_NAME)
        if found is not None:
            return found, "mind"
    form = input_format or guess_format(path)
    if form is None:
        raise DataError(
            f"cannot tell the format of {path} by its name; give --format ({', '.join(FORMATS)})"
        )
    return InputFile(path), form


def _click_input(path: Path) -> InputFile:
    # A log may have any name when it is given as a file.
    return find_member(path, BEHAVIORS_NAME) or InputFile(path)
