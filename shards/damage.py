"""What to do about damaged samples: stop at the first, or skip some, each counted and named."""

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
    """Where its data begin in the shard, as the index says."""
    row: int
    cause: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.shard}, offset {self.offset} (row {self.row}): {self.cause}"


class SampleDamage(DamageError):
    """One sample cannot be read as it was written; others of its shard perhaps can.

    Attributes:
        skip: Where and why.
    """

    def __init__(self, skip: Skip, message: str) -> None:
        """Keep the place; ``message`` is what the user reads."""
        super().__init__(message)
        self.skip = skip

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole."""
        return (SampleDamage, (self.skip, str(self)))


class SkipBudget:
    """Skips damaged samples, up to a number of them.

    Each is said on standard error at once. One more than allowed is an error.

    Args:
        allowed: Samples that may be skipped; 0 stops at the first.
        say: Whether to say so on standard error; a process that hands its skips to another that
            says it does not.

    Attributes:
        skipped: What was skipped, in the order in which it was met.

    Raises:
        UsageError: If ``allowed`` is negative.
    """

    def __init__(self, allowed: int = 0, *, say: bool = True) -> None:
        """Start with nothing skipped."""
        if allowed < 0:
            raise UsageError(f"--skip-damaged is {allowed}, expected 0 or more")
        self.allowed = allowed
        self.say = say
        self.skipped: list[Skip] = []

    def add(self, skips: Sequence[Skip], error: DamageError | None = None) -> None:
        """Count and name more skipped samples.

        Args:
            skips: The samples.
            error: What to raise where none may be skipped, or what ended the work elsewhere.

        Raises:
            DamageError: ``error``, or that there are now more than allowed.
        """
        self.skipped += skips
        for skip in skips if self.say and self.allowed else ():
            print(f"skipped damaged sample: {skip}", file=sys.stderr, flush=True)
        if error is not None and not (self.allowed and isinstance(error, SampleDamage)):
            raise error
        if len(self.skipped) > self.allowed:
            raise DamageError(
                f"{len(self.skipped)} damaged samples, more than --skip-damaged {self.allowed}"
                f" allows; the last: {self.skipped[-1]}; put back an intact copy of the shard, or"
                " allow more"
            )

    def samples(
        self, shard_set: "ShardSet", shard: int
    ) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield (row, sample) of one shard in the order of the rows; None for a skipped one.

        Raises:
            DamageError: If more samples are damaged than allowed.
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
        """Write ``skipped.jsonl`` with one skipped sample a line; without any, remove it.

        Where nothing may be skipped the first damage was the end, and a former report stays.

        Returns:
            Where it is, or None.
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
