"""Keep a local mirror of a remote shard set; fetch files when needed.

A mirror has the layout of a shard set (:mod:`shards.cache`), so all readers of sets can read it.
Its folder is named after the URL and the set's fingerprint. Its content therefore never changes,
and a remote set that is built again gets another mirror.
"""

import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.cache import Cache, CacheSettings, open_cache
from shards.errors import DamageError, DataError
from shards.files import atomic_file, sha256_file, temporary_name
from shards.index import INDEX_DTYPE, TAR_BLOCK
from shards.location import shown_text
from shards.manifest import MANIFEST_NAME, Manifest, ShardInfo, read_manifest
from shards.remote import MissingError, Remote, RemoteError, is_plain_name

T = TypeVar("T")

COLUMNS = "columns"
_COLUMN_FILE = "column.json"
_ELSEWHERE = ".elsewhere"  # marks a column folder whose column.json was fetched
_LATEST = "latest"  # names the folder of the last fetched manifest
_CONNECTIONS = 8
_OFFLINE_ATTEMPTS = 2
_CELL_SUFFIXES = (".json", ".safetensors")
# Files that a column set may have beside its cells, for servers that cannot list folders.
_KNOWN_EXTRAS = (
    "empty.npy",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)


class Mirror:
    """One set's mirror, in a cache that may be shared with other sets.

    Attributes:
        url: URL of the set.
        settings: Settings of the cache.
        folder: The mirror's folder.
        manifest: The set's manifest.
        is_offline: Whether the server was unreachable when the set was opened; files in the cache
            can then still be read.
    """

    def __init__(
        self, remote: Remote, settings: CacheSettings, folder: Path, manifest: Manifest
    ) -> None:
        """Use :meth:`open`."""
        self.url = remote.url
        self.remote = remote
        self.settings = settings
        self.folder = folder
        self.manifest = manifest
        self.is_offline = False
        self.cache: Cache = open_cache(settings)
        self.cache.use(folder)

    @classmethod
    def open(cls, url: str, settings: CacheSettings) -> "Mirror":
        """Fetch and check the manifest, and find the columns of the set.

        Raises:
            UsageError: The URL is invalid, or the package that reads it is not installed.
            DataError: The URL has no shard set, or the server is unreachable and the cache holds
                nothing of the set.
            DamageError: The manifest is damaged.
        """
        remote = Remote(url, settings.patience)
        name = remote.url.rpartition("/")[2] or "set"
        digest = hashlib.sha256(remote.url.encode()).hexdigest()[:12]
        home = open_cache(settings).folder / f"{_safe(name)}-{digest}"
        known = _known(home)
        attempts = _OFFLINE_ATTEMPTS if known else None
        try:
            folder, manifest = remote.read(
                MANIFEST_NAME, lambda data: _keep_manifest(home, data), attempts=attempts
            )
        except MissingError as error:
            raise DataError(
                f"{remote.url} is not a shard set: it has no {MANIFEST_NAME}"
            ) from error
        except RemoteError as error:
            if known is None:
                raise
            print(f"tnr: {shown_text(error)}; using the copy in {known}", file=sys.stderr)
            mirror = cls(remote, settings, known, read_manifest(known))
            mirror.is_offline = True
            return mirror
        mirror = cls(remote, settings, folder, manifest)
        mirror._look_for_columns()
        return mirror

    def _look_for_columns(self) -> None:
        names = self.remote.names(COLUMNS)
        for name in names or ():
            self.add_column(name)
        if names is not None:
            for mark in self.folder.glob(f"{COLUMNS}/*/{_ELSEWHERE}"):
                if mark.parent.name not in names:
                    (mark.parent / _COLUMN_FILE).unlink(missing_ok=True)
                    mark.unlink(missing_ok=True)  # from now on, cells made here are local

    def add_column(self, name: str) -> None:
        """Fetch the ``column.json`` of a column set, if the server has it."""
        folder = self.folder / COLUMNS / name
        if self.is_offline or not is_plain_name(name) or (folder / _COLUMN_FILE).is_file():
            return
        try:
            data = self.remote.read(f"{COLUMNS}/{name}/{_COLUMN_FILE}", bytes)
        except MissingError:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ELSEWHERE).touch()
        _keep(folder / _COLUMN_FILE, data)

    def is_elsewhere(self, column: Path) -> bool:
        """Tell whether a column folder of the mirror stands for a remote column."""
        return (column / _ELSEWHERE).exists()

    def add_extras(self, column: Path) -> None:
        """Fetch a column set's other files: a tokenizer, the empty title's vector."""
        if self.is_offline or (column / f"{_ELSEWHERE}-extras").exists():
            return
        base = f"{COLUMNS}/{column.name}"
        names = self.remote.names(base)
        if names is None:
            wanted, required = list(_KNOWN_EXTRAS), False
        else:
            wanted, required = [n for n in names if not n.endswith(_CELL_SUFFIXES)], True
            if "tokenizer" in wanted:
                wanted.remove("tokenizer")
                inside = self.remote.names(f"{base}/tokenizer") or []
                wanted += [f"tokenizer/{name}" for name in inside]
        found: dict[str, bytes] = {}
        for name in wanted:
            try:
                found[name] = self.remote.read(f"{base}/{name}", bytes)
            except MissingError:
                if required:
                    raise
        tokenizer = {n.partition("/")[2]: d for n, d in found.items() if "/" in n}
        if tokenizer and not (column / "tokenizer").is_dir():
            _keep_folder(column / "tokenizer", tokenizer)
        for name, data in found.items():
            if "/" not in name:
                _keep(column / name, data)
        (column / f"{_ELSEWHERE}-extras").touch()

    def bring_shard(self, number: int) -> None:
        """Fetch a shard's tar and index unless they are in the cache; check both.

        Raises:
            DataError: The server is unreachable, lacks a file, or sends other bytes than the
                manifest says.
        """
        shard = self.manifest.shards[number]
        tar, index = self.folder / shard.name, self.folder / shard.index_name
        if not self.touch(tar):
            with self.cache.fetching(tar) as needed:
                if needed:
                    with self.cache.file(tar, shard.bytes) as path:
                        self.remote.download(shard.name, path, lambda p: _check_tar(p, shard))
        if not self.touch(index):
            with self.cache.fetching(index) as needed:
                if needed:
                    self.remote.read(shard.index_name, lambda d: self._keep_index(d, shard))

    def _keep_index(self, data: bytes, shard: ShardInfo) -> None:
        """Keep an index; if the manifest lacks its sha256, check the index against its tar."""
        if len(data) != shard.index_size:
            raise DamageError(f"it has {len(data)} bytes, expected {shard.index_size}")
        if shard.index_sha256 is None:
            self._check_records(data, shard)
        elif hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise DamageError("its sha256 is not the manifest's")
        self.cache.write(self.folder / shard.index_name, data)

    def _check_records(self, data: bytes, shard: ShardInfo) -> None:
        records = np.frombuffer(data, INDEX_DTYPE)
        with (self.folder / shard.name).open("rb") as tar:
            for offset, length, crc32 in records.tolist():
                good = offset >= TAR_BLOCK and offset + length <= shard.bytes
                if not good or zlib.crc32(os.pread(tar.fileno(), length, offset)) != crc32:
                    raise DamageError("it does not fit its tar (crc32): damaged, or of another tar")

    def bring_file(self, name: str, sha256: str) -> None:
        """Fetch a small file beside the shards, unless it is in the cache.

        Raises:
            DataError: The server lacks the file, has another one, or is unreachable.
        """
        path = self.folder / name

        def keep(data: bytes) -> None:
            if hashlib.sha256(data).hexdigest() != sha256:
                raise DamageError("its sha256 is not the manifest's")
            _keep(path, data)

        if not path.is_file() or sha256_file(path) != sha256:
            self.remote.read(name, keep)

    def touch(self, path: Path) -> bool:
        """Tell whether a file is in the cache, and mark the file as just used."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True


def in_parallel(action: Callable[[T], Any], items: Iterable[T]) -> None:
    """Apply ``action`` to every item over several connections; raise the first error.

    Raises:
        TinyNewsRecError: The error of ``action``; items not started by then are skipped.
    """
    with ThreadPoolExecutor(_CONNECTIONS, "fetch") as pool:
        jobs = [pool.submit(action, item) for item in items]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _safe(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]


def _keep_manifest(home: Path, data: bytes) -> tuple[Path, Manifest]:
    """Check a manifest and store it in the folder of its fingerprint."""
    home.mkdir(parents=True, exist_ok=True)
    arriving = temporary_name(home / MANIFEST_NAME)
    arriving.mkdir()
    try:
        (arriving / MANIFEST_NAME).write_bytes(data)
        manifest = read_manifest(arriving)
    finally:
        (arriving / MANIFEST_NAME).unlink(missing_ok=True)
        arriving.rmdir()
    folder = home / manifest.fingerprint[:12]
    folder.mkdir(exist_ok=True)
    _keep(folder / MANIFEST_NAME, data)
    _keep(home / _LATEST, folder.name.encode())
    return folder, manifest


def _known(home: Path) -> Path | None:
    """Return the last fetched manifest's folder by its recorded name, not by times."""
    named = home / _LATEST
    if named.is_file():
        folder = home / named.read_text(encoding="utf-8")
        if (folder / MANIFEST_NAME).is_file():
            return folder
    folders = sorted(path.parent for path in home.glob(f"*/{MANIFEST_NAME}"))
    return folders[0] if len(folders) == 1 else None


def _keep(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def _keep_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder atomically; keep a folder that another process made meanwhile."""
    arriving = temporary_name(folder)
    arriving.mkdir(parents=True)
    for name, data in files.items():
        _keep(arriving / name, data)
    try:
        arriving.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        for name in files:
            (arriving / name).unlink()
        arriving.rmdir()


def _check_tar(path: Path, shard: ShardInfo) -> None:
    size = path.stat().st_size
    if size != shard.bytes:
        raise DamageError(f"it has {size} bytes, the manifest says {shard.bytes}")
    found = sha256_file(path)
    if found != shard.sha256:
        raise DamageError(
            f"its sha256 is {found[:12]}, the manifest says {shard.sha256[:12]}: damaged, or"
            " changed since the set was built"
        )
