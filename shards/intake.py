"""Count a build's rows, refuse bad ones up to a limit, recognise an existing result."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError
from shards.files import fingerprint
from shards.manifest import has_manifest
from shards.progress import Progress
from shards.publish import SetPublisher, clear_published
from shards.reader import ShardSet
from shards.sources import InputFile

# If all first rows are refused, the options are wrong and not the rows.
HOPELESS_ROWS = 1000


@dataclass(frozen=True)
class BuildResult:
    """The result of a build."""

    shard_set: ShardSet
    already_built: bool
    """Whether the set existed already, built from the same inputs with the same options."""
    unused_fields: tuple[str, ...] = ()
    """Fields of the first articles that no option names."""


class Intake:
    """Counts the rows of all inputs, refuses bad ones and enforces the limit.

    Attributes:
        bar: The progress, in bytes of the inputs.
    """

    def __init__(
        self,
        publisher: SetPublisher,
        files: Sequence[InputFile],
        max_refused: float,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        """Start without rows.

        Args:
            publisher: Publisher of the set.
            files: The inputs.
            max_refused: Share of the rows, 0 to 1, that may be refused.
            hints: Hint for a failed build, by the reason (or the reason's first word) of most
                refused rows.
        """
        self.publisher = publisher
        self.max_refused = max_refused
        self.hints = hints or {}
        self.rows = 0
        self.refused = 0
        self.bar = Progress(sum(file.size for file in files), f"build {publisher.kind}", "B")

    def __enter__(self) -> "Intake":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the progress bar."""
        self.bar.close()

    def refuse(self, source: str, line: int, reason: str, excerpt: str) -> None:
        """Refuse a row for ``reason``."""
        self.refused += 1
        self.publisher.refuse(source, line, reason, excerpt)

    def check_start(self, refused_first: int, refused: Iterable[tuple[str, int, str, str]]) -> None:
        """Fail if all first rows were refused, before the report is written.

        Args:
            refused_first: Number of refused rows before the first good one, as far as read.
            refused: These rows, as arguments of :meth:`refuse`.

        Raises:
            DataError: All first rows were refused.
        """
        if refused_first >= HOPELESS_ROWS:
            for row in islice(refused, HOPELESS_ROWS):
                self.refuse(*row)
            self.fail(f"the first {HOPELESS_ROWS} rows were all refused")

    def check(self, written: int) -> None:
        """Fail if too many rows were refused, or none is left.

        Args:
            written: The number of samples.

        Raises:
            DataError: The build fails; the message counts the reasons and names the report.
        """
        self.publisher.count("rows", self.rows)
        self.publisher.count("refused", self.refused)
        if self.refused > self.max_refused * self.rows:
            self.fail(
                f"{self.refused} of {self.rows} rows were refused"
                f" ({100 * self.refused / self.rows:.1f}%, more than --max-refused"
                f" {self.max_refused:g} allows)"
            )
        if written == 0:
            self.fail(f"there is nothing to build from: {self.rows} rows, all refused")

    def fail(self, what: str, reason: str | None = None) -> None:
        """End the build because of ``what``, and keep the report.

        Args:
            what: The cause.
            reason: The reason to give a hint for; None takes the reason of most refused rows.

        Raises:
            DataError: Always; the message counts the reasons and names the report.
        """
        reasons = sorted(self.publisher.refused.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons)
        report = self.publisher.keep_report()
        first = reason or (reasons[0][0] if reasons else "")
        hint = self.hints.get(first) or self.hints.get(first.split(" ")[0])
        raise DataError(
            f"{what}: {listed or 'the inputs are empty'}"
            + (f"; each is listed in {report}" if report else "")
            + (f"; {hint}" if hint else "")
        )


def describe(kind: str, files: Sequence[InputFile], options: dict[str, Any]) -> dict[str, Any]:
    """Describe a set for its manifest's ``source``, without folder names: the same anywhere."""
    inputs = [{"name": file.name, "sha256": file.sha256()} for file in files]
    request = fingerprint({"kind": kind, "inputs": inputs, "options": options})
    return {"inputs": inputs, "options": options, "request": request}


def check_options(
    files: Sequence[InputFile], samples_per_shard: int, max_refused: float, processes: int = 1
) -> None:
    """Check the options that all builds share.

    Raises:
        UsageError: An option is wrong.
    """
    if not files:
        raise UsageError("no input is given")
    if samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard is {samples_per_shard}; expected 1 or more")
    if not 0 <= max_refused <= 1:
        raise UsageError(f"--max-refused is {max_refused:g}; expected a share from 0 to 1")
    if processes < 1:
        raise UsageError(f"--processes is {processes}; expected 1 or more")


@contextlib.contextmanager
def failures_explained(out: Path) -> Iterator[None]:
    """Turn a full disk or a killed process into a one-line error with a remedy.

    Args:
        out: The set's folder.

    Raises:
        DataError: Replaces ``OSError`` and ``BrokenProcessPool``.
    """
    again = "run the same command again; finished parts are kept"
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that built {out} was killed (out of memory?); lower --processes and {again}"
        ) from error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"cannot write to {out}: {error.strerror or error}{place}; correct that, then {again}"
        ) from error


def same_set(out: Path, source: Mapping[str, Any], force: bool) -> ShardSet | None:
    """Return the set at ``out`` if it is the requested one; None without a set.

    Raises:
        DataError: ``out`` holds another set (and ``force`` is off).
    """
    if force or not has_manifest(out):
        return None
    former = ShardSet.open(out)
    if former.manifest.source.get("request") == source["request"]:
        clear_published(out)
        return former
    raise DataError(
        f"{out} already holds a shard set built {_difference(former.manifest.source, source)};"
        " choose another folder, or give --force to replace it together with its columns"
    )


def _difference(former: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """Describe in words how the sources of two sets differ."""
    old, new = former.get("options"), source["options"]
    names = sorted(new)
    if isinstance(old, dict):
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    parts = ["from other inputs"] * (former.get("inputs") != source["inputs"])
    parts += [f"with other options ({', '.join(names)})"] * bool(names)
    return " and ".join(parts) or "by another version"
