"""What every build does: count rows, refuse bad ones within a limit, recognise its own result."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.files import fingerprint
from shards.manifest import has_manifest
from shards.progress import Progress
from shards.reader import ShardSet
from shards.sources import InputFile, Row
from shards.writer import ShardWriter

# Where every row at the start is refused, the options are wrong and not the rows.
_HOPELESS_ROWS = 1000


@dataclass(frozen=True)
class BuildResult:
    """What a build gives back."""

    shard_set: ShardSet
    already_built: bool
    """Whether the set was there before, built from the same inputs with the same options."""


class Intake:
    """Counts the rows of all inputs, refuses the bad ones and keeps the limit."""

    def __init__(self, writer: ShardWriter, files: Sequence[InputFile], max_refused: float) -> None:
        """Start with no rows; ``max_refused`` is the share, 0 to 1, that may be refused."""
        self.writer = writer
        self.max_refused = max_refused
        self.rows = 0
        self.refused = 0
        self._bar = Progress(sum(file.size for file in files), f"build {writer.kind}", "B")

    def __enter__(self) -> "Intake":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Take the progress bar away."""
        self._bar.close()

    def good_rows(self, file: InputFile, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows that could be read; refuse the others.

        Raises:
            DataError: If all rows at the start were refused.
        """
        shown = 0
        for row in rows:
            self.rows += 1
            if row.reason is None:
                yield row
            else:
                self.refuse(file, row, row.reason)
            if file.position != shown:
                self._bar.update(file.position - shown)
                shown = file.position
            if self.rows == self.refused == _HOPELESS_ROWS:
                self._fail(f"the first {_HOPELESS_ROWS} rows were all refused")
        self._bar.update(file.position - shown)

    def refuse(self, file: InputFile, row: Row, reason: str) -> None:
        """Refuse a row for ``reason``."""
        self.refused += 1
        self.writer.refuse(file.name, row.line, reason, row.excerpt())

    def check(self) -> None:
        """Fail if too much was refused, or nothing is left.

        Raises:
            DataError: Then; the message counts the reasons and names the report.
        """
        self.writer.count("rows", self.rows)
        self.writer.count("refused", self.refused)
        if self.refused > self.max_refused * self.rows:
            self._fail(
                f"{self.refused} of {self.rows} rows were refused"
                f" ({100 * self.refused / self.rows:.1f}%, more than --max-refused"
                f" {self.max_refused:g} allows)"
            )
        if self.writer.num_rows == 0:
            self._fail(f"there is nothing to build from: {self.rows} rows, all refused")

    def _fail(self, what: str) -> None:
        reasons = sorted(self.writer.refused.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons)
        report = self.writer.keep_report()
        raise DataError(
            f"{what}: {listed or 'the inputs are empty'}"
            + (f"; each is listed in {report}" if report else "")
        )


class BodySpool:
    """Bodies kept on disk until their articles come: in memory are only ids and offsets."""

    def __init__(self, folder: Path) -> None:
        """Open a nameless temporary file in ``folder``; it vanishes with the process."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def __len__(self) -> int:
        """Return the number of bodies."""
        return len(self._places)

    def __contains__(self, article_id: str) -> bool:
        """Say whether there is a body of this article."""
        return article_id in self._places

    def put(self, article_id: str, body: str) -> None:
        """Keep a body.

        Raises:
            UnicodeEncodeError: If it holds half of a surrogate pair.
        """
        data = body.encode("utf-8")
        self._file.write(data)
        self._places[article_id] = (self._end, len(data))
        self._end += len(data)

    def get(self, article_id: str) -> str | None:
        """Return an article's body, or None."""
        place = self._places.get(article_id)
        if place is None:
            return None
        self._file.flush()
        return os.pread(self._file.fileno(), place[1], place[0]).decode("utf-8")

    def __enter__(self) -> "BodySpool":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give the disk space back."""
        self._file.close()


def describe(kind: str, files: Sequence[InputFile], options: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's ``source``; it has no folders' names: the same set anywhere."""
    inputs = [{"name": file.name, "sha256": file.sha256()} for file in files]
    request = fingerprint({"kind": kind, "inputs": inputs, "options": options})
    return {"inputs": inputs, "options": options, "request": request}


def check_options(files: Sequence[InputFile], samples_per_shard: int, max_refused: float) -> None:
    """Check the options that all builds have.

    Raises:
        UsageError: If one is wrong.
    """
    if not files:
        raise UsageError("no input is given")
    if samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard is {samples_per_shard}; expected 1 or more")
    if not 0 <= max_refused <= 1:
        raise UsageError(f"--max-refused is {max_refused:g}; expected a share from 0 to 1")


def same_set(out: Path, source: Mapping[str, Any], force: bool) -> ShardSet | None:
    """Return the set at ``out`` if it is the one that is asked for, or None if there is none.

    Raises:
        DataError: If there is another one (and ``force`` is off).
    """
    if force or not has_manifest(out):
        return None
    former = ShardSet.open(out)
    if former.manifest.source.get("request") == source["request"]:
        return former
    raise DataError(
        f"{out} already holds a shard set built from other inputs or with other options; choose"
        " another folder, or give --force to replace it together with its columns"
    )
