"""Run the phases of every build: spools, a decision about each row, shards.

1. Every input is cut into chunks (:mod:`shards.chunks`); every chunk becomes a spool
   (:mod:`shards.spool`), in any process.
2. The records of all spools decide, in the order of the inputs, which rows are kept; refused rows
   are reported with their lines.
3. The shards are written from the spools (:mod:`shards.assemble`), in any process.

Spools and shards are whole or absent, and depend on inputs and options alone. A build that was
killed therefore continues with the existing ones, and the number of processes changes no byte.
"""

import heapq
import unicodedata
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards import chunks
from shards.assemble import plan_shards, write_shard
from shards.chunks import Chunk, cut
from shards.fields import RowError
from shards.files import fingerprint
from shards.intake import Intake
from shards.manifest import ShardInfo
from shards.pool import Workers
from shards.progress import Progress
from shards.publish import SetPublisher
from shards.sources import MAX_ROW_BYTES, InputFile, Row
from shards.spool import Facts, Spool, SpoolWriter, read_at, read_column

_WORK_FORMAT = 2


def work_name(request: str) -> str:
    """Return the name under which the unfinished work for a request is found again."""
    # Include everything else that determines the cuts or the content of a spool.
    return fingerprint(
        {
            "request": request,
            "format": _WORK_FORMAT,
            "chunks": [chunks.CHUNK_BYTES, MAX_ROW_BYTES],
            "unicode": unicodedata.unidata_version,
        }
    )[:16]


class Taker(ABC):
    """Moves the rows of one chunk into its spool."""

    @abstractmethod
    def take(self, line: int, record: Any) -> None:
        """Add a row to the spool.

        Raises:
            RowError: The row must be refused.
        """

    def finish(self, facts: dict[str, Any]) -> bytes:
        """Add to the facts of the chunk, and return its near-duplicate signatures."""
        return b""


@dataclass(frozen=True)
class SpoolJob(ABC):
    """Makes the spools of one input; picklable, so that other processes can run it."""

    file: InputFile
    form: str
    folder: Path
    """Folder of the spools."""
    stem: str
    """Prefix of the spools' names."""

    def path(self, chunk: Chunk) -> Path:
        """Return the path of a chunk's spool."""
        return self.folder / f"{self.stem}-{chunk.number:06d}.spool"

    def run(self, chunk: Chunk) -> Path:
        """Make the spool of a chunk unless it exists; return its path.

        Raises:
            DamageError: The input cannot be read.
            OSError: The spool cannot be written.
        """
        path = self.path(chunk)
        if path.exists():
            return path
        file = InputFile(self.file.path, self.file.member)
        num_rows = refused_first = 0
        facts: dict[str, Any] = {}
        with SpoolWriter(path) as spool:
            taker = self.taker(spool)
            take = taker.take
            for row in chunk.rows(file):
                num_rows += 1
                reason = row.reason
                if reason is None:
                    try:
                        take(row.line, row.record)
                    except RowError as error:
                        reason = error.reason
                    except UnicodeEncodeError:
                        reason = "unpaired surrogate"
                if reason is not None:
                    spool.refuse(row.line, reason, row.excerpt())
                    refused_first += refused_first == num_rows - 1
            facts |= {"rows": num_rows, "lines": file.num_lines, "refused_first": refused_first}
            signatures = taker.finish(facts)
            spool.finish(facts, signatures)
        return path

    @abstractmethod
    def taker(self, spool: SpoolWriter) -> Taker:
        """Return the object that moves a chunk's rows into ``spool``."""


@dataclass(frozen=True)
class ReadChunk:
    """A chunk that has become a spool."""

    source: str
    lines_before: int
    spool: Spool

    def refused(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield (source, line, reason, excerpt) of the unusable rows."""
        for line, reason, excerpt in self.spool.refused():
            yield self.source, self.lines_before + line, reason, excerpt

    def payloads(self, chosen: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yield (line, payload) of the rows for which ``chosen``, bool ``[n]``, is true."""
        table = self.spool.rows()
        starts = np.cumsum(table["length"], dtype=np.int64) - table["length"]
        for row in np.flatnonzero(chosen).tolist():
            payload = read_at(self.spool.path, int(starts[row]), int(table["length"][row]))
            yield self.lines_before + int(table["line"][row]), payload


class SpooledBuild:
    """One build, inside the folder that a publisher holds.

    Attributes:
        publisher: Publisher of the set.
        workers: The processes that do the work.
        intake: Counts the rows.
        folder: Folder of the spools.
        reads: The chunks read so far, in the order of the inputs.
    """

    def __init__(self, publisher: SetPublisher, workers: Workers, intake: Intake) -> None:
        """Start without chunks."""
        self.publisher = publisher
        self.workers = workers
        self.intake = intake
        self.folder = publisher.staging / "spools"
        self.folder.mkdir(exist_ok=True)
        self.reads: list[ReadChunk] = []
        self._refused_first: int | None = 0

    def spool(
        self,
        job: SpoolJob,
        columns: Sequence[str] = (),
        wanted: Sequence[Sequence[str]] | None = None,
    ) -> Iterator[Facts]:
        """Make the missing spools of one input; yield the facts of each spool.

        Args:
            job: Makes the spools.
            columns: Required columns of a table.
            wanted: Paths of the keys to read from Parquet; None reads all columns.

        Raises:
            DataError: All first rows were refused, or a column is missing.
            DamageError: The input cannot be read to its end.
        """
        sent: deque[tuple[Chunk, bool]] = deque()

        def tasks() -> Iterator[Chunk]:
            for chunk in cut(job.file, job.form, columns, wanted):
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
            self.reads.append(ReadChunk(job.file.name, lines, spool))
            lines += facts["lines"]
            # Ask the builder first: it may know why all first rows were refused.
            yield facts
            self._note_rows(facts["rows"], facts["refused_first"])

    def _note_rows(self, rows: int, refused_first: int) -> None:
        self.intake.rows += rows
        if self._refused_first is None:
            return
        total = self._refused_first + refused_first
        refused = (row for read in self.reads for row in read.refused())
        self.intake.check_start(total, refused)
        self._refused_first = total if refused_first == rows else None

    def report(self, reads: Sequence[ReadChunk], duplicate: np.ndarray) -> None:
        """Report the refused rows of some chunks, line by line in their order.

        Args:
            reads: The chunks.
            duplicate: bool ``[n]``: whether a row of their spools is refused because of its id.
        """
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

    def write(
        self, spools: Sequence[Spool], kept: np.ndarray, samples_per_shard: int
    ) -> list[ShardInfo]:
        """Write the missing shards.

        Args:
            spools: Spools in the order of the inputs.
            kept: bool ``[n]``: whether a row of the spools becomes a sample.
            samples_per_shard: Number of samples in every shard but the last.
        """
        staging, kind = self.publisher.staging, self.publisher.kind
        total = int(read_column(spools, "length")[kept].sum(dtype=np.int64))
        tasks = plan_shards(spools, kept, samples_per_shard, staging, kind)
        shards = []
        with Progress(total, "write shards", "B") as bar:
            for info, size, made in self.workers.map(write_shard, tasks):
                (bar.skip if made else bar.update)(size)
                shards.append(info)
        return shards
