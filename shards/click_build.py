"""Build impression sets: click logs whose ids are replaced by rows of the article set.

:mod:`shards.spooled_build` has the phases of the build. A row is kept unless it cannot be parsed or
its impression id occurs earlier in the same file. Oddities of a kept row are counted, and listed
with the row's line in ``noted.jsonl``.

Memory: about 80 bytes per impression while ids are compared, and in every process the ids of the
article set (about 150 bytes each).
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from shards.click_cells import UNKNOWN_TIME, parse_time
from shards.duplicates import first_of_each, read_duplicates
from shards.files import atomic_file, read_json
from shards.intake import HOPELESS_ROWS, Intake
from shards.mind import DAY_FIRST, Impression, find_row, has_labels, parse_behavior
from shards.pool import Workers
from shards.publish import SetPublisher
from shards.reader import ShardSet
from shards.sources import UTF8_REMEDY, InputFile, parse_tab_separated
from shards.spool import Spool, SpoolWriter, hash_text, read_column
from shards.spooled_build import SpooledBuild, SpoolJob, Taker
from shards.tables import TSV_REMEDY

# Possible oddities of a kept impression, by bit of a record's ``changed``.
_UNKNOWN_HISTORY, _EMPTY_HISTORY, _WITHOUT_NEGATIVE, _UNKNOWN_TIME, _CLICKED_AND_NOT = (
    1 << bit for bit in range(5)
)
_COUNTS = {
    "empty_history": _EMPTY_HISTORY,
    "without_negative": _WITHOUT_NEGATIVE,
    "unknown_time": _UNKNOWN_TIME,
    "clicked_and_not": _CLICKED_AND_NOT,
}
_IDS_NAMED = 8

HINTS = {
    "wrong number of columns": "a click log has 5 columns, separated by tabs, without a header; a"
    " file with 8 is news.tsv, for --articles",
    "bad click label": "expected ids separated by spaces, each followed by -1 (clicked) or -0:"
    " N1-0 N2-1",
    "bad history": "expected ids separated by spaces, without commas, quotes or brackets: N1 N2",
    "bad candidates": "expected ids separated by spaces, without commas, quotes or brackets: N1-0"
    " N2-1",
    DAY_FIRST: "expected 11/15/2019 8:55:22 AM (MIND's, the month first) or 2019-11-15T08:55:22"
    " (ISO 8601); days up to the twelfth would be read as months, so convert the times of the whole"
    " log",
    "bad UTF-8": UTF8_REMEDY,
    "unknown article": "the log shows news that the article set lacks; was the set built from"
    " another part? one set can hold all parts: --articles train.zip dev.zip",
    "missing labels": "lines with labels and lines without labels cannot be mixed; build a log"
    " without labels, such as MIND's test part, separately",
    "unexpected labels": "lines with labels and lines without labels cannot be mixed; build a log"
    " without labels, such as MIND's test part, separately",
    "quoted columns": TSV_REMEDY,
    "duplicate id": "an impression id may occur once per file; was the file written twice over?",
}
"""Hints that accompany the most frequent reason for refusal in a failed build."""


@dataclass(frozen=True)
class ClickJob(SpoolJob):
    """Spools impressions; the payload is the sample in its final form."""

    number: int
    """Number of the input; an impression id may occur once per input."""
    articles: Path
    """The file that :func:`write_article_rows` wrote."""
    labelled: bool
    newest_first: bool = False

    def taker(self, spool: SpoolWriter) -> Taker:
        """Return the object that moves a chunk's rows into ``spool``."""
        return _ClickTaker(self, spool)


class _ClickTaker(Taker):
    def __init__(self, job: ClickJob, spool: SpoolWriter) -> None:
        self._spool, self._labelled, self._number = spool, job.labelled, job.number
        self._rows = read_article_rows(job.articles)
        self._newest_first = job.newest_first
        self._notes: list[tuple[int, str, str]] = []

    def take(self, line: int, record: Any) -> None:
        impression = parse_behavior(record, self._rows, self._labelled, self._newest_first)
        odd = _EMPTY_HISTORY if not impression.history else 0
        if impression.unknown_history:
            odd |= _UNKNOWN_HISTORY
            unknown = [item for item in record[3].split() if find_row(self._rows, item) is None]
            self._note(line, "unknown history", unknown)
        if impression.clicks is not None and 0 not in impression.clicks:
            odd |= _WITHOUT_NEGATIVE
            self._note(line, "no negative", record[4].split())
        twice = _clicked_and_not(impression)
        if twice:
            odd |= _CLICKED_AND_NOT
            shown = zip(impression.candidates, record[4].split(), strict=True)
            self._note(line, "clicked and not", [item for row, item in shown if row in twice])
        if parse_time(impression.time) == UNKNOWN_TIME:
            odd |= _UNKNOWN_TIME
            self._note(line, "unknown time", [record[2].strip()])
        self._spool.add(
            orjson.dumps(impression.to_sample()),
            line,
            id=hash_text(f"{self._number}\0{impression.id}"),
            article=impression.unknown_history.to_bytes(8, "little"),
            changed=odd,
        )

    def _note(self, line: int, what: str, words: Sequence[str]) -> None:
        more = f" and {len(words) - _IDS_NAMED} more" if len(words) > _IDS_NAMED else ""
        self._notes.append((line, what, " ".join(words[:_IDS_NAMED]) + more))

    def finish(self, facts: dict[str, Any]) -> bytes:
        facts["notes"] = self._notes
        return b""


def _clicked_and_not(impression: Impression) -> set[int]:
    """Return the articles that an impression shows both as clicked and as not clicked."""
    if impression.clicks is None or len(set(impression.candidates)) == len(impression.candidates):
        return set()
    shown = set(zip(impression.candidates, impression.clicks, strict=True))
    return {row for row, clicked in shown if clicked and (row, 0) in shown}


class ImpressionBuild(SpooledBuild):
    """One build of an impression set."""

    def __init__(
        self,
        publisher: SetPublisher,
        workers: Workers,
        intake: Intake,
        samples_per_shard: int,
        *,
        newest_first: bool = False,
    ) -> None:
        """Start without any rows; ``newest_first`` is the order of the logs' histories."""
        super().__init__(publisher, workers, intake)
        self.newest_first = newest_first
        self.samples_per_shard = samples_per_shard

    def run(self, files: Sequence[InputFile], article_set: ShardSet) -> ShardSet:
        """Build and publish the set.

        Args:
            files: The click logs.
            article_set: The set whose rows the impressions name.

        Raises:
            DataError: Too many rows are refused.
            DamageError: An input or the article set cannot be read.
            OSError: A file cannot be written.
            BrokenProcessPool: A process was killed.
        """
        articles = self.folder / "articles.json"
        write_article_rows(articles, article_set)
        labelled = find_labels(files, read_article_rows(articles))
        for number, file in enumerate(files):
            stem = f"clicks-{number:03d}"
            known = labelled is not False
            job = ClickJob(
                file, "mind", self.folder, stem, number, articles, known, self.newest_first
            )
            for facts in self.spool(job):
                del facts["notes"]  # too large to keep for all chunks; _note reads them again
        self.intake.bar.close()

        spools = [read.spool for read in self.reads]
        first = first_of_each(read_column(spools, "id"))
        kept = first == np.arange(len(first))
        del first
        self.report(self.reads, ~kept)
        self._check_times()
        self._count(spools, kept)
        self.intake.check(int(kept.sum()))
        self._note(kept, files)
        shards = self.write(spools, kept, self.samples_per_shard)
        self.publisher.source["labelled"] = bool(labelled)
        fields = ["id", "user", "time", "history", "candidates"]
        return self.publisher.publish(shards, [*fields, "clicks"] if labelled else fields)

    def _check_times(self) -> None:
        """Fail if a time has its day first, because other times are then ambiguous.

        Raises:
            DataError: A time has its day first; the message names the first such line.
        """
        if DAY_FIRST not in self.publisher.refused:
            return
        source, line, _, row = next(
            row for read in self.reads for row in read.refused() if row[2] == DAY_FIRST
        )
        self.intake.fail(f"{source}, line {line} has its day before the month ({row})", DAY_FIRST)

    def _count(self, spools: Sequence[Spool], kept: np.ndarray) -> None:
        odd = read_column(spools, "changed")[kept]
        unknown = int(read_column(spools, "article")[kept].sum())
        counts = {"unknown_history": unknown}
        counts |= {name: int(((odd & bit) != 0).sum()) for name, bit in _COUNTS.items()}
        for name, number in counts.items():
            if number:
                self.publisher.count(name, number)

    def _note(self, kept: np.ndarray, files: Sequence[InputFile]) -> None:
        """List the oddities of kept rows."""
        done = 0
        for read in self.reads:
            table = read.spool.rows()
            refused = set(table["line"][~kept[done : done + len(table)]].tolist())
            done += len(table)
            for line, what, excerpt in Spool(read.spool.path).facts["notes"]:
                if line not in refused:
                    self.publisher.note(read.source, read.lines_before + line, what, excerpt)
        for file in files:
            if not file.is_plain or file.size == 0:
                continue
            with file.path.open("rb") as opened:
                opened.seek(-1, 2)
                if opened.read() != b"\n":
                    self.publisher.note(file.name, 0, "no line end", "the last line may be cut")


def write_article_rows(path: Path, article_set: ShardSet) -> None:
    """Write the row of every article id, including ids of dropped duplicates, as JSON.

    Raises:
        DamageError: The article set cannot be read.
        OSError: The file cannot be written.
    """
    if path.exists():
        return
    rows = {str(article["id"]): row for row, article in enumerate(article_set)}
    rows.update(read_duplicates(article_set))
    with atomic_file(path) as file:
        file.write(orjson.dumps(rows))


@functools.lru_cache(maxsize=1)
def read_article_rows(path: Path) -> dict[str, int]:
    """Read the file of :func:`write_article_rows`, once per process.

    Raises:
        DamageError: The file is damaged.
        DataError: The file cannot be read.
    """
    return read_json(path, dict[str, int], limit=path.stat().st_size)


def find_labels(files: Sequence[InputFile], rows: Mapping[str, int]) -> bool | None:
    """Tell whether the logs have labels, from the first line that names a known article.

    Returns:
        None if none of the first lines names a known article; all lines will then be refused.

    Raises:
        DamageError: A log cannot be read.
    """
    looked_at = 0
    for file in files:
        for row in parse_tab_separated(InputFile(file.path, file.member).lines()):
            found = has_labels(row.record, rows) if row.reason is None else None
            looked_at += 1
            if found is not None or looked_at == HOPELESS_ROWS:
                return found
    return None
