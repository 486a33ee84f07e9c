"""Check one stored tar made elsewhere against the manifest and its index."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.damage import SampleDamage
from shards.errors import DamageError, DataError
from shards.files import open_regular
from shards.index import MemberIndex, read_member_index
from shards.manifest import Manifest, ShardInfo
from shards.reader import ShardSet
from shards.tar import TarWalk
from shards.verify_samples import SampleFacts

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """One problem of a shard set."""

    file: str
    offset: int | None
    """Byte offset in the file, if there is one."""
    what: str

    def __str__(self) -> str:
        """Return the problem on one line."""
        place = self.file if self.offset is None else f"{self.file}, offset {self.offset}"
        return f"{place}: {self.what}"


def hash_problems(
    manifest: Manifest, shard: ShardInfo, size: int, digest: str
) -> Iterator[Problem]:
    """Yield what size and sha256 of a shard say."""
    if size != shard.bytes:
        yield Problem(shard.name, None, f"has {size} bytes, the manifest says {shard.bytes}")
    if digest != shard.sha256:
        twin = next((other.name for other in manifest.shards if other.sha256 == digest), None)
        hint = f"; it is what {twin} should be" if twin else ""
        yield Problem(shard.name, None, f"sha256 is not that of the manifest{hint}")


def foreign_problems(
    folder: Path, manifest: Manifest, shard: ShardInfo, first_row: int, facts: SampleFacts
) -> Iterator[Problem]:
    """Yield the problems of one shard of a set with a layout.

    The sha256 tells whether the shard is the indexed tar. If it is not, the walk through its
    members finds the place at which it stops being a tar, and the index finds the changed samples.
    """
    index: MemberIndex | None = None
    members = len(manifest.layout.members) if manifest.layout is not None else 0
    path = folder / shard.name
    try:
        index_path = folder / shard.index_name
        index = read_member_index(index_path, shard, members)
    except DamageError as error:
        yield Problem(shard.index_name, None, str(error))
    try:
        size, digest = _hash(path)
    except (OSError, DataError) as error:
        yield Problem(shard.name, None, f"cannot be read: {error}")
        return
    if digest == shard.sha256 and size == shard.bytes:
        if index is not None:
            yield from _article_problems(ShardSet(folder, manifest), shard, first_row, facts)
        return
    yield from hash_problems(manifest, shard, size, digest)
    try:
        with TarWalk(path, hashlib.sha256()) as walk:
            for _ in walk:
                pass
    except DamageError as error:
        yield Problem(shard.name, None, str(error))
    if index is not None:
        yield from _sample_problems(path, shard, index, first_row)


def _article_problems(
    shard_set: ShardSet, shard: ShardInfo, first_row: int, facts: SampleFacts
) -> Iterator[Problem]:
    """Yield the unreadable articles of a shard that is the indexed tar."""
    for row in range(first_row, first_row + shard.samples):
        try:
            facts.add_article(shard_set.sample(row))
        except SampleDamage as error:
            yield Problem(shard.name, error.skip.offset, f"row {row}: {error.skip.cause}")


def _hash(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _sample_problems(
    path: Path, shard: ShardInfo, index: MemberIndex, first_row: int
) -> Iterator[Problem]:
    with open_regular(path) as file:
        for place in range(index.samples):
            for member in range(index.members):
                offset, length, crc32 = index.record(place, member)
                file.seek(offset)
                data = file.read(length)
                if offset and (len(data) != length or zlib.crc32(data) != crc32):
                    cause = "is cut" if len(data) != length else "does not fit its checksum (crc32)"
                    what = f"sample {place} (row {first_row + place}) {cause}"
                    yield Problem(shard.name, offset, what)
