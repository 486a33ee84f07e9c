"""Remake the indexes of a shard set from its tars."""

import tarfile
from pathlib import Path

from shards.errors import DamageError
from shards.files import atomic_file, clear_leftovers, sha256_file
from shards.foreign_scan import Scanner
from shards.index import IndexBuilder
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.progress import progress


def rebuild_indexes(folder: str | Path) -> list[str]:
    """Remake every index that does not match its tar.

    Returns:
        The names of the written indexes.

    Raises:
        DataError: ``folder`` is not a shard set, or a tar cannot be read.
        DamageError: A tar differs from the manifest; its index is then not changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    clear_leftovers(folder)
    if manifest.layout is not None:
        return _rebuild_foreign(folder, manifest, _scanner(manifest))
    written = []
    for shard in progress(manifest.shards, None, "index", "shards"):
        if sha256_file(folder / shard.name) != shard.sha256:
            raise DamageError(
                f"{folder / shard.name} is not the shard of the manifest (sha256 differs);"
                f" `tnr shards verify {folder}` shows where"
            )
        index = _index_of(folder / shard.name, shard)
        path = folder / shard.index_name
        if not path.is_file() or path.read_bytes() != index.to_bytes():
            index.write(path)
            written.append(shard.index_name)
    return written


def _scanner(manifest: Manifest) -> Scanner:
    """Return a scanner that reads the tars as at the set's creation."""
    assert manifest.layout is not None
    guessed = manifest.source.get("guessed", [])
    if not isinstance(guessed, list) or not all(isinstance(part, str) for part in guessed):
        raise DamageError(f"the manifest's source.guessed is {guessed!r}; expected a list of names")
    return Scanner(manifest.layout, guessed)


def _rebuild_foreign(folder: Path, manifest: Manifest, scanner: Scanner) -> list[str]:
    """Rebuild indexes of tars made elsewhere; read all, because ids must be unique."""
    written = []
    for shard in progress(manifest.shards, None, "index", "shards"):
        scanned = scanner.scan(folder / shard.name)
        if scanned.info != shard:
            what = "sha256" if scanned.info.sha256 != shard.sha256 else "the indexed content"
            raise DamageError(
                f"{folder / shard.name} is not the shard of the manifest ({what} differs); restore"
                " the tar, or give --force to index the tars again"
            )
        path = folder / shard.index_name
        if not path.is_file() or path.read_bytes() != scanned.index:
            with atomic_file(path) as file:
                file.write(scanned.index)
            written.append(shard.index_name)
    return written


def _index_of(path: Path, shard: ShardInfo) -> IndexBuilder:
    index = IndexBuilder()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            data = tar.extractfile(member)
            if data is None:
                raise DamageError(f"{path}: the member {member.name!r} is not a file")
            index.add(member.offset_data, data.read())
    if index.samples != shard.samples:
        raise DamageError(f"{path} has {index.samples} samples, the manifest says {shard.samples}")
    return index
