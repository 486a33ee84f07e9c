"""The course of an article build: spools, decisions, shards.

1. Every input is cut into chunks (:mod:`shards.chunks`); every chunk becomes a spool
   (:mod:`shards.articles`), in any process.
2. The records of all spools decide, in the order of the inputs, which rows are articles
   (:mod:`shards.duplicates`); refused rows are reported with their lines.
3. The shards are written from the spools (:mod:`shards.assemble`), in any process.

Spools and shards are whole or absent, and depend on inputs and options alone. So a build that was
killed goes on with those that are there, and the number of processes leaves no trace.
"""

import heapq
import json
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shards import chunks, normalise
from shards.articles import (
    ORIGINS,
    REQUIRED,
    ArticleJob,
    BodyJob,
    SpoolJob,
    fields_of,
    write_body_index,
)
from shards.assemble import plan_shards, write_shard
from shards.chunks import Chunk, cut
from shards.duplicates import (
    DUPLICATE_CONTENT,
    DUPLICATE_ID,
    KEPT,
    REPEATED,
    decide,
    describe_duplicates,
    first_of_each,
)
from shards.fields import ArticleFields, FieldReader
from shards.files import atomic_file, fingerprint
from shards.intake import Intake
from shards.manifest import ShardInfo
from shards.pool import Workers
from shards.progress import Progress
from shards.publish import DUPLICATES_NAME, SetPublisher
from shards.reader import ShardSet
from shards.sources import MAX_ROW_BYTES, InputFile, Row
from shards.spool import Spool, read_at, read_column

_WORK_FORMAT = 1


def work_name(request: str) -> str:
    """Return the name under which the unfinished work for a request is found again."""
    # Whatever else decides where the cuts are or what a spool holds.
    return fingerprint(
        {
            "request": request,
            "format": _WORK_FORMAT,
            "chunks": [chunks.CHUNK_BYTES, MAX_ROW_BYTES],
            "unicode": unicodedata.unidata_version,
        }
    )[:16]


@dataclass(frozen=True, kw_only=True)
class ArticleOptions:
    """How articles are to be built."""

    fields: ArticleFields
    samples_per_shard: int
    normalise: bool
    keep_duplicates: bool
    near_duplicates: bool


@dataclass(frozen=True)
class _Read:
    """A chunk that has become a spool."""

    source: str
    lines_before: int
    spool: Spool

    def refused(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield (source, line, reason, excerpt) of the rows that could not be used."""
        for line, reason, excerpt in self.spool.refused():
            yield self.source, self.lines_before + line, reason, excerpt

    def payloads(self, chosen: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yield (line, payload) of the rows for which ``chosen``, bool ``[n]``, is true."""
        table = self.spool.rows()
        starts = np.cumsum(table["length"], dtype=np.int64) - table["length"]
        for row in np.flatnonzero(chosen).tolist():
            payload = read_at(self.spool.path, int(starts[row]), int(table["length"][row]))
            yield self.lines_before + int(table["line"][row]), payload


class ArticleBuild:
    """One build, inside the folder that a publisher holds."""

    def __init__(
        self, publisher: SetPublisher, workers: Workers, intake: Intake, options: ArticleOptions
    ) -> None:
        """Start with nothing read."""
        self.publisher = publisher
        self.workers = workers
        self.intake = intake
        self.options = options
        self.folder = publisher.staging / "spools"
        self._reads: list[_Read] = []
        self._refused_first: int | None = 0

    def run(
        self,
        files: Sequence[tuple[InputFile, str]],
        body_file: tuple[InputFile, str] | None,
    ) -> ShardSet:
        """Build and publish the set.

        Raises:
            DataError: If too many rows are refused, or a field occurs in no row.
            DamageError: If an input cannot be read to its end.
            OSError: If something cannot be written.
            BrokenProcessPool: If a process was killed.
        """
        self.folder.mkdir(exist_ok=True)
        bodies, num_bodies = None, 0
        if body_file is not None:
            bodies, num_bodies = self._read_bodies(*body_file)
        inputs: list[int] = []
        first = len(self._reads)
        for number, (file, form) in enumerate(files):
            job = ArticleJob(
                *(file, form, self.options.fields, self.folder, f"articles-{number:03d}"),
                *(self.options.normalise, bodies, self.options.near_duplicates),
            )
            self._spool(job, FieldReader(self.options.fields), REQUIRED)
            inputs += [number] * (len(self._reads) - first - len(inputs))
        self.intake.bar.close()

        reads = self._reads[first:]
        spools = [read.spool for read in reads]
        verdict, stands_for = decide(spools, inputs, self.options.keep_duplicates)
        self._report(reads, verdict == DUPLICATE_ID)
        kept = verdict == KEPT
        self._count(spools, verdict, num_bodies if body_file is not None else None)
        self.intake.check(int(kept.sum()))
        self._list_duplicates(reads, verdict, stands_for)
        if self.options.near_duplicates:
            from shards.near_duplicates import count_near_duplicates

            self.publisher.count("near_duplicates", count_near_duplicates(spools, kept))
        shards = self._write(spools, kept)
        mask = int(np.bitwise_or.reduce(read_column(spools, "fields")[kept]))
        return self.publisher.publish(shards, fields_of(mask))

    def _spool(self, job: SpoolJob, reader: FieldReader, required: tuple[str, ...]) -> None:
        """Make the spools of one input, or find them made."""
        columns = [] if job.form == "mind" else reader.required_columns(required)
        sent: deque[tuple[Chunk, bool]] = deque()

        def tasks() -> Iterator[Chunk]:
            for chunk in cut(job.file, job.form, columns):
                made = job.path(chunk).exists()
                light = replace(chunk, lines=None, ready=None)
                sent.append((light, made))
                yield light if made else chunk

        lines = 0
        for path in self.workers.map(job.run, tasks()):
            chunk, made = sent.popleft()
            (self.intake.bar.skip if made else self.intake.bar.update)(chunk.num_bytes)
            spool = Spool(path)
            facts = spool.facts
            lines = lines if chunk.lines_before is None else chunk.lines_before
            self._reads.append(_Read(job.file.name, lines, spool))
            lines += facts["lines"]
            reader.note(facts.pop("seen", ()), facts.pop("keys", ()))
            self._note_rows(facts["rows"], facts["refused_first"])
        if job.form != "mind":
            reader.check_all_seen(job.file.name)

    def _note_rows(self, rows: int, refused_first: int) -> None:
        self.intake.rows += rows
        if self._refused_first is None:
            return
        total = self._refused_first + refused_first
        refused = (row for read in self._reads for row in read.refused())
        self.intake.check_start(total, refused)
        self._refused_first = total if refused_first == rows else None

    def _read_bodies(self, file: InputFile, form: str) -> tuple[Path, int]:
        """Spool the bodies of the second file; the first body of an id counts."""
        fields = self.options.fields
        job = BodyJob(file, form, fields, self.folder, "bodies", self.options.normalise)
        self._spool(job, FieldReader(fields, ("id", "body")), ("id", "body"))
        spools = [read.spool for read in self._reads]
        first = first_of_each(read_column(spools, "id"))
        own = first == np.arange(len(first))
        self._report(self._reads, ~own)
        index = self.folder / "bodies.index"
        return index, write_body_index(index, spools, own)

    def _report(self, reads: Sequence[_Read], duplicate: np.ndarray) -> None:
        """Report the refused rows of some chunks, line by line in their order."""
        done = 0
        for read in reads:
            again = duplicate[done : done + read.spool.num_rows]
            done += read.spool.num_rows
            duplicates = (
                (read.source, line, "duplicate id", Row(0, raw=payload).excerpt())
                for line, payload in read.payloads(again)
            )
            for row in heapq.merge(read.refused(), duplicates, key=lambda row: row[1]):
                self.intake.refuse(*row)

    def _count(self, spools: Sequence[Spool], verdict: np.ndarray, num_bodies: int | None) -> None:
        count = self.publisher.count
        kept = verdict == KEPT
        origin = read_column(spools, "origin")
        changed = read_column(spools, "changed")[kept]
        found = {
            "repeated": int((verdict == REPEATED).sum()),
            "duplicate_content": int((verdict == DUPLICATE_CONTENT).sum()),
            **{
                name: int((origin[kept] == place).sum())
                for place, name in enumerate(ORIGINS)
                if name
            },
            "normalised": int((changed != 0).sum()),
            **{
                f"normalised_{rule}": int((changed >> place & 1).sum())
                for place, rule in enumerate(normalise.RULES)
            },
        }
        for name, number in found.items():
            if number:
                count(name, number)
        if num_bodies is not None:
            articles = (verdict == KEPT) | (verdict == DUPLICATE_CONTENT)
            second = ORIGINS.index("body_from_second_file")
            count("bodies_unused", num_bodies - int((origin[articles] == second).sum()))

    def _list_duplicates(
        self, reads: Sequence[_Read], verdict: np.ndarray, stands_for: np.ndarray
    ) -> None:
        """Write which ids stand for which rows, beside those that the samples have."""
        if len(stands_for) == 0:
            return
        dropped = verdict == DUPLICATE_CONTENT
        rows = iter((np.cumsum(verdict == KEPT) - 1)[stands_for].tolist())
        done = 0
        with atomic_file(self.publisher.staging / DUPLICATES_NAME, "w") as file:
            for read in reads:
                of_read = dropped[done : done + read.spool.num_rows]
                done += read.spool.num_rows
                for line, payload in read.payloads(of_read):
                    entry = {"id": json.loads(payload)["id"], "row": next(rows)}
                    entry |= {"source": read.source, "line": line}
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.publisher.source["duplicates"] = describe_duplicates(self.publisher.staging)

    def _write(self, spools: Sequence[Spool], kept: np.ndarray) -> list[ShardInfo]:
        """Write the shards, or find them written."""
        staging = self.publisher.staging
        total = int(read_column(spools, "length")[kept].sum(dtype=np.int64))
        tasks = plan_shards(spools, kept, self.options.samples_per_shard, staging)
        shards = []
        with Progress(total, "write shards", "B") as bar:
            for info, size, made in self.workers.map(write_shard, tasks):
                (bar.skip if made else bar.update)(size)
                shards.append(info)
        return shards
