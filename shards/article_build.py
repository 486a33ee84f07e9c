"""Build article sets: decide which rows are articles, and write the report and the counts.

:mod:`shards.spooled_build` has the phases of the build; the records of all spools decide, in the
order of the inputs, which rows are articles (:mod:`shards.duplicates`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards import normalise
from shards.articles import (
    ORIGINS,
    REQUIRED,
    ArticleJob,
    BodyJob,
    fields_of,
    write_body_index,
)
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
from shards.files import atomic_file
from shards.intake import HOPELESS_ROWS, Intake
from shards.parquet import leaf_names
from shards.pool import Workers
from shards.publish import DUPLICATES_NAME, SetPublisher
from shards.reader import ShardSet
from shards.sources import InputFile
from shards.spool import Facts, Spool, read_column
from shards.spooled_build import ReadChunk, SpooledBuild, SpoolJob
from shards.tables import TSV_REMEDY

_FEW_QUOTED = 2


@dataclass(frozen=True, kw_only=True)
class ArticleOptions:
    """Options of an article build."""

    fields: ArticleFields
    samples_per_shard: int
    normalise: bool
    keep_duplicates: bool
    near_duplicates: bool


class ArticleBuild(SpooledBuild):
    """One build of an article set."""

    def __init__(
        self, publisher: SetPublisher, workers: Workers, intake: Intake, options: ArticleOptions
    ) -> None:
        """Start without any rows."""
        super().__init__(publisher, workers, intake)
        self.options = options
        self.unused_fields: list[str] = []
        self._quoting = np.zeros(3, np.int64)

    def run(
        self,
        files: Sequence[tuple[InputFile, str]],
        body_file: tuple[InputFile, str] | None,
    ) -> ShardSet:
        """Build and publish the set.

        Raises:
            DataError: Too many rows are refused, or a field occurs in no row.
            DamageError: An input cannot be read to its end.
            OSError: A file cannot be written.
            BrokenProcessPool: A process was killed.
        """
        bodies, num_bodies = None, 0
        if body_file is not None:
            bodies, num_bodies = self._read_bodies(*body_file)
        inputs: list[int] = []
        first = len(self.reads)
        for number, (file, form) in enumerate(files):
            job = ArticleJob(
                *(file, form, self.folder, f"articles-{number:03d}", self.options.fields),
                *(self.options.normalise, bodies, self.options.near_duplicates),
            )
            reader = FieldReader(self.options.fields)
            self._spool(job, reader, REQUIRED)
            self.unused_fields += [n for n in reader.other_names if n not in self.unused_fields]
            inputs += [number] * (len(self.reads) - first - len(inputs))
        self.intake.bar.close()

        reads = self.reads[first:]
        spools = [read.spool for read in reads]
        verdict, stands_for = decide(spools, inputs, self.options.keep_duplicates)
        self.report(reads, verdict == DUPLICATE_ID)
        kept = verdict == KEPT
        self._count(spools, verdict, num_bodies if body_file is not None else None)
        self.intake.check(int(kept.sum()))
        self._list_duplicates(reads, verdict, stands_for)
        if self.options.near_duplicates:
            from shards.near_duplicates import count_near_duplicates

            self.publisher.count("near_duplicates", count_near_duplicates(spools, kept))
        shards = self.write(spools, kept, self.options.samples_per_shard)
        mask = int(np.bitwise_or.reduce(read_column(spools, "fields")[kept]))
        return self.publisher.publish(shards, fields_of(mask))

    def _spool(self, job: SpoolJob, reader: FieldReader, required: tuple[str, ...]) -> None:
        """Make the spools of one input, and check that every named field occurs."""
        if job.form == "mind":
            for facts in self.spool(job):
                self._add_quoting(job, facts)
            self._note_quoting(job)
            return
        columns = reader.required_columns(required)
        if job.form == "parquet":
            reader.note_leaves(leaf_names(job.file))
        if job.form != "jsonl":  # the columns of a table are checked when it is opened
            required = ()
        rows = refused_first = 0

        def check() -> None:
            if job.form == "jsonl" and refused_first == rows:
                job.file.check_json_lines()
            reader.check_all_seen(job.file.name, required if reader.other_names else ())

        for facts in self.spool(job, columns, reader.wanted()):
            self._add_quoting(job, facts)
            reader.note(facts.pop("seen", []), facts.pop("keys", []))
            refused_first += facts["refused_first"] if refused_first == rows else 0
            rows += facts["rows"]
            if refused_first >= HOPELESS_ROWS:
                check()
        check()
        self._note_quoting(job)

    def _add_quoting(self, job: SpoolJob, facts: Facts) -> None:
        self._quoting += np.array(facts.get("quoting", (0, 0, 0)), np.int64)

    def _note_quoting(self, job: SpoolJob) -> None:
        """Note a file that seems to have been written with quoting."""
        quoted, others, rows = self._quoting.tolist()
        self._quoting[:] = 0
        if quoted <= others or quoted < _FEW_QUOTED:
            return
        self.publisher.count("rows_in_quotes", rows)
        self.publisher.note(
            job.file.name,
            0,
            "quoted fields",
            f"{quoted} fields of {rows} rows are in quotes, which stay in the texts; {TSV_REMEDY}",
        )

    def _read_bodies(self, file: InputFile, form: str) -> tuple[Path, int]:
        """Spool the bodies of the second file; the first body of an id counts."""
        fields = self.options.fields
        job = BodyJob(file, form, self.folder, "bodies", fields, self.options.normalise)
        self._spool(job, FieldReader(fields, ("id", "body")), ("id", "body"))
        spools = [read.spool for read in self.reads]
        first = first_of_each(read_column(spools, "id"))
        own = first == np.arange(len(first))
        self.report(self.reads, ~own)
        index = self.folder / "bodies.index"
        return index, write_body_index(index, spools, own)

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
        self, reads: Sequence[ReadChunk], verdict: np.ndarray, stands_for: np.ndarray
    ) -> None:
        """List each duplicate id with the row that stands for it."""
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
