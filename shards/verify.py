"""Check a stored shard set: files against the manifest, samples against indexes and manifest.

The sha256 tells whether a shard is the original; the walk through its members tells where it
differs. One pass over each file finds all damage, and one damage does not hide the next.
"""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.duplicates import duplicates_problem
from shards.errors import DamageError, DataError
from shards.files import open_regular
from shards.index import TAR_BLOCK, padded, read_index
from shards.manifest import MANIFEST_NAME, Manifest, ShardInfo, read_manifest
from shards.progress import Progress
from shards.publish import DUPLICATES_NAME
from shards.reader import member_name
from shards.verify_foreign import Problem, foreign_problems, hash_problems
from shards.verify_samples import SampleFacts, manifest_problems

# Python's tarfile, which webdataset writes with, pads tars to records of 20 blocks.
_TAR_RECORD = 20 * TAR_BLOCK
_MAX_PROBLEMS_PER_SHARD = 20
_Read = Callable[[int], bytes]


@dataclass(frozen=True)
class Verification:
    """The result of a check."""

    manifest: Manifest
    problems: tuple[Problem, ...]
    largest_row: int = -1
    """The largest row of the article set that samples name; -1 if they name none."""

    @property
    def ok(self) -> bool:
        """Whether the check found no problem."""
        return not self.problems


def verify_set(folder: str | Path) -> Verification:
    """Check a shard set: missing and extra files, sha256, tar structure, index and checksums.

    Raises:
        DataError: ``folder`` is not a shard set.
        DamageError: The manifest is damaged, so nothing can be checked against it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems: list[Problem] = []
    facts = SampleFacts(manifest)
    first_row = 0
    total_bytes = sum(shard.bytes for shard in manifest.shards)
    with Progress(total_bytes, f"verify {folder.name}", "B") as bar:
        check = _shard_problems if manifest.layout is None else foreign_problems
        for shard in manifest.shards:
            problems.extend(_limited(check(folder, manifest, shard, first_row, facts)))
            first_row += shard.samples
            bar.update(shard.bytes)
    problems.extend(_extra_files(folder, manifest))
    if (problem := duplicates_problem(folder, manifest)) is not None:
        problems.append(Problem(DUPLICATES_NAME, None, problem))
    if not problems:  # otherwise the samples differ from those that the manifest describes
        said = manifest_problems(folder, manifest, facts)
        problems.extend(Problem(MANIFEST_NAME, None, what) for what in said)
    return Verification(manifest, tuple(problems), facts.largest_row)


def _limited(problems: Iterator[Problem]) -> Iterator[Problem]:
    for number, problem in enumerate(problems):
        if number == _MAX_PROBLEMS_PER_SHARD:
            yield Problem(problem.file, None, "more problems, not listed")
            return
        yield problem


def _extra_files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    listed = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in listed:
            yield Problem(path.name, None, "is not in the manifest")


def _shard_problems(
    folder: Path, manifest: Manifest, shard: ShardInfo, first_row: int, facts: SampleFacts
) -> Iterator[Problem]:
    index: np.ndarray | None = None
    try:
        index = read_index(folder / shard.index_name, shard.samples)
    except DamageError as error:
        yield Problem(shard.index_name, None, str(error))
    path = folder / shard.name
    try:
        with open_regular(path) as raw:
            size = os.fstat(raw.fileno()).st_size
            walk = _Walk(size, shard, index, first_row, facts)
            digest = _walk(raw, walk)
    except (OSError, DataError) as error:
        yield Problem(shard.name, None, f"cannot be read: {error}")
        return
    yield from hash_problems(manifest, shard, size, digest)
    yield from walk.problems


def _walk(raw: io.FileIO, walk: "_Walk") -> str:
    """Read a shard once, and return its sha256."""
    with io.BufferedReader(raw) as file:
        digest = hashlib.sha256()

        def read(size: int) -> bytes:
            data = file.read(size)
            digest.update(data)
            return data

        walk.members(read)
        walk.end(read)
    return digest.hexdigest()


class _Walk:
    """Walks through the members of one tar, beside the index if it is usable."""

    def __init__(
        self,
        size: int,
        shard: ShardInfo,
        index: np.ndarray | None,
        first_row: int,
        facts: SampleFacts,
    ) -> None:
        self.size = size
        self.facts = facts
        self.shard = shard
        self.first_row = first_row
        self.problems: list[Problem] = []
        self.at = 0
        self.index = index
        if index is not None and not _is_consistent(index):
            self._report_index("its offsets and lengths do not follow each other as in a tar")
            self.index = None

    def members(self, read: _Read) -> None:
        """Check each sample's header and data."""
        for place in range(self.shard.samples):
            header = read(TAR_BLOCK)
            if len(header) < TAR_BLOCK:
                self._report(self.at, f"the tar ends here, before sample {place}")
                return
            length, found = self._header(header, place)
            if length is None:
                self._report(self.at, f"{found}; without its index the rest cannot be checked")
                return
            if found is not None:
                self._report(self.at, found)
            data_at = self.at + TAR_BLOCK
            # A header may hold any length.
            data = read(max(0, min(padded(length), self.size - data_at)))
            self.at = data_at + padded(length)
            if len(data) < padded(length):
                part = "data" if len(data) < length else "padding"
                self._report(data_at, f"the tar ends in the {part} of sample {place}")
                return
            self._data(data, length, data_at, place)

    def end(self, read: _Read) -> None:
        """Check the end after the last sample: zero blocks up to a full record."""
        rest = read(2 * _TAR_RECORD)
        overlong = bool(read(1))
        while read(1 << 20):
            pass
        if self.problems:
            return
        expected = -(-(self.at + 2 * TAR_BLOCK) // _TAR_RECORD) * _TAR_RECORD - self.at
        if len(rest) != expected or overlong:
            self._report(self.at, "the blocks that end the tar are incomplete, or too many")
        elif rest.strip(b"\0"):
            self._report(self.at, "there are further bytes after the last sample")

    def _header(self, header: bytes, place: int) -> tuple[int | None, str | None]:
        """Return the length of the data (None: unknown) and what is wrong with the header."""
        indexed = None if self.index is None else int(self.index["length"][place])
        name = member_name(self.first_row + place)
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return indexed, f"the header of sample {place} is damaged: {error}"
        if member.name != name or not member.isreg() or member.size < 0:
            return indexed or member.size, f"expected member {name}, found {member.name!r}"
        if indexed is not None and member.size != indexed:
            self._report_index(f"sample {place} has {member.size} bytes, the index says {indexed}")
            # From here on the tar and its index disagree: trust the tar.
            self.index = None
        return member.size, None

    def _data(self, data: bytes, length: int, data_at: int, place: int) -> None:
        if data[length:].strip(b"\0"):
            self._report(data_at + length, f"the padding of sample {place} is not zero")
        if self.index is not None and zlib.crc32(data[:length]) != self.index["crc32"][place]:
            self._report(data_at, f"the checksum (crc32) of sample {place} does not fit the index")
        elif (what := self.facts.add(data[:length])) is not None:
            self._report(data_at, f"sample {place} {what}")

    def _report(self, offset: int, what: str) -> None:
        self.problems.append(Problem(self.shard.name, offset, what))

    def _report_index(self, what: str) -> None:
        self.problems.append(Problem(self.shard.index_name, None, what))


def _is_consistent(index: np.ndarray) -> bool:
    """Tell whether the samples of an index follow each other without gaps."""
    if not len(index):
        return True
    lengths = index["length"].astype(np.int64)
    sizes = TAR_BLOCK + -(-lengths // TAR_BLOCK) * TAR_BLOCK
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)[:-1]])
    return bool(np.array_equal(index["offset"].astype(np.int64), starts + TAR_BLOCK))
