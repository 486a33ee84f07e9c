"""Handle damaged samples: stop at the first, or skip some, counting and naming each."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DamageError, UsageError
from shards.files import atomic_file

if TYPE_CHECKING:
    from shards.reader import ShardSet

REPORT_NAME = "skipped.jsonl"


@dataclass(frozen=True)
class Skip:
    """A damaged sample."""

    shard: str
    """File name of the shard."""
    offset: int
    """First byte of the sample in the shard, from the index."""
    row: int
    cause: str

    def __str__(self) -> str:
        """Return the sample on one line."""
        return f"{self.shard}, offset {self.offset} (row {self.row}): {self.cause}"


class SampleDamage(DamageError):
    """One unreadable sample; other samples of its shard may be intact.

    Attributes:
        skip: The sample and the cause.
    """

    def __init__(self, skip: Skip, message: str) -> None:
        """Keep the sample; ``message`` is what the user reads."""
        super().__init__(message)
        self.skip = skip

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all of the error, so that it can cross processes."""
        return (SampleDamage, (self.skip, str(self)))


class SkipBudget:
    """Skips damaged samples, up to a number of them.

    Each skip is reported on standard error at once. One more than allowed is an error.

    Args:
        allowed: Number of samples that may be skipped; 0 stops at the first.
        say: Whether to report on standard error; False in a process that hands its skips to a
            process that reports them.

    Attributes:
        skipped: The skipped samples, in the order of their discovery.

    Raises:
        UsageError: ``allowed`` is negative.
    """

    def __init__(self, allowed: int = 0, *, say: bool = True) -> None:
        """Start without skips."""
        if allowed < 0:
            raise UsageError(f"--skip-damaged is {allowed}, expected 0 or more")
        self.allowed = allowed
        self.say = say
        self.skipped: list[Skip] = []

    def add(self, skips: Sequence[Skip], error: DamageError | None = None) -> None:
        """Count and name more skipped samples.

        Args:
            skips: The samples.
            error: Error to raise if no sample may be skipped, or that ended the work elsewhere.

        Raises:
            DamageError: ``error``, or a message that more samples are damaged than allowed.
        """
        self.skipped += skips
        for skip in skips if self.say and self.allowed else ():
            print(f"skipped damaged sample: {skip}", file=sys.stderr, flush=True)
        if error is not None and not (self.allowed and isinstance(error, SampleDamage)):
            raise error
        if len(self.skipped) > self.allowed:
            raise DamageError(
                f"{len(self.skipped)} damaged samples, more than --skip-damaged {self.allowed}"
                f" allows; the last: {self.skipped[-1]}; restore an intact copy of the shard, or"
                " allow more"
            )

    def samples(
        self, shard_set: "ShardSet", shard: int
    ) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield (row, sample) of one shard in row order; None for a skipped sample.

        Raises:
            DamageError: More samples are damaged than allowed.
        """
        for row in shard_set.rows_of(shard):
            try:
                sample = shard_set.sample(row)
            except SampleDamage as error:
                self.add([error.skip], error)
                yield row, None
            else:
                yield row, sample

    def write_report(self, folder: Path) -> Path | None:
        """Write ``skipped.jsonl`` with one skipped sample per line; remove it if there is none.

        If no sample may be skipped, the first damage ended the work, and an earlier report stays.

        Returns:
            Path of the report, or None.
        """
        path = folder / REPORT_NAME
        if self.skipped and not self.allowed:
            return None
        if not self.skipped:
            path.unlink(missing_ok=True)
            return None
        with atomic_file(path, "w") as file:
            for skip in sorted(self.skipped, key=lambda skip: skip.row):
                file.write(json.dumps(asdict(skip)) + "\n")
        return path
