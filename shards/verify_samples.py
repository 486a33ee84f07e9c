"""Check samples against their manifest: kind, fields, labels, rows, refused rows."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shards.errors import DamageError, DataError
from shards.files import open_regular, parse_json
from shards.manifest import Manifest
from shards.publish import REFUSED_NAME
from shards.set_kinds import kind_named

_MAX_LINE_BYTES = 1 << 20


class SampleFacts:
    """Facts about the samples of a set, collected sample by sample.

    Attributes:
        fields: Names of the fields that occur.
        samples: Number of samples so far.
        largest_row: The largest row of the article set that samples name; -1 if they name none.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Start without samples."""
        self.fields: set[str] = set()
        self.samples = 0
        self.largest_row = -1
        self._manifest = manifest
        self._keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._kind = kind_named(manifest.kind)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(self._kind.sample)

    def add(self, data: bytes) -> str | None:
        """Check the JSON of one sample; return what is wrong with it, or None."""
        self.samples += 1
        try:
            self.fields.update(self._keys.decode(data))
            sample = self._decoder.decode(data)
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            return f"is not a sample of a set of {self._kind.name}: {error}"
        for name in self._kind.row_fields:
            self.largest_row = max(self.largest_row, max(getattr(sample, name), default=-1))
        return self._kind.problem(sample, self._manifest)

    def add_article(self, article: dict[str, str]) -> None:
        """Record an article of a tar made elsewhere, which the decoder has checked."""
        self.samples += 1
        self.fields.update(article)


def manifest_problems(folder: Path, manifest: Manifest, facts: SampleFacts) -> Iterator[str]:
    """Yield entries of the manifest that contradict the samples or the refused rows.

    Args:
        folder: The set's folder.
        manifest: The set's manifest.
        facts: Facts about its samples; fields are compared only if the facts cover all samples.
    """
    if facts.samples == manifest.num_rows and facts.fields != set(manifest.fields):
        yield (
            f"fields are {', '.join(manifest.fields)}; the samples have "
            f"{', '.join(sorted(facts.fields))}"
        )
    written = manifest.counts.get("written", manifest.num_rows)
    if written != manifest.num_rows:
        yield f"counts.written is {written}, the set has {manifest.num_rows} rows"
    try:
        listed = _refused(folder / REFUSED_NAME)
    except DataError as error:
        yield f"its counts of refused rows cannot be checked: {error}"
        return
    if listed != Counter(manifest.refused):
        yield (
            f"refused is {dict(sorted(manifest.refused.items()))}, {REFUSED_NAME} lists "
            f"{dict(sorted(listed.items()))}"
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str


def _refused(path: Path) -> Counter[str]:
    """Count the refused rows of the report by reason.

    Raises:
        DataError: The report cannot be read.
    """
    counts: Counter[str] = Counter()
    if not path.exists():
        return counts
    with open_regular(path) as file:
        rest = b""
        while block := file.read(_MAX_LINE_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            counts.update(parse_json(line, _Refusal, where=path).reason for line in lines)
            if len(rest) > _MAX_LINE_BYTES:
                raise DamageError(f"{path} has a line of more than {_MAX_LINE_BYTES:,} bytes")
    if rest:
        raise DamageError(f"{path} ends within a line")
    return counts
