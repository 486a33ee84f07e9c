"""Keep fetched files in a bounded folder that all processes of a node share.

::

    <cache>/<last part of the URL>-<hash of the URL>/<fingerprint of the set>/
        manifest.json, news-000000.tar, news-000000.idx     laid out as a shard set
        columns/<column>/column.json, ...
        columns/<column>/fetched/                           records, headers and tensors of cells
        columns/<column>/*.safetensors                      cells written here, never evicted

A file gets its name only when it is complete, checked and synced. A process killed at any moment
therefore leaves at worst a temporary file, which the next fetch of the same file removes. Space is
freed before a file is written: the least recently used files go first. Of a set that a process has
open, only files that are read window by window (tars, indexes, bodies) may go.
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import DataError, UsageError
from shards.files import atomic_file, fsync_folder, temporary_name
from shards.location import is_elsewhere, shown
from shards.remote import Patience

CACHE_VARIABLE = "TNR_CACHE"
FETCHED = "fetched"
GIB = 1 << 30
DEFAULT_GIB = 32.0
_IN_USE = ".in-use"
_LEDGER = ".bytes"
_POLL_S = 0.01


@dataclass(frozen=True)
class CacheSettings:
    """Folder and size of the cache, and retries of a fetch."""

    folder: str | None = None
    """None takes ``$TNR_CACHE`` or ``~/.cache/tiny-newsrec``; the disk must be local."""
    max_bytes: int = int(DEFAULT_GIB * GIB)
    patience: Patience = field(default_factory=Patience)

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            UsageError: The setting is a URL.
        """
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        named = self.folder or os.environ.get(CACHE_VARIABLE) or f"{home}/tiny-newsrec"
        if is_elsewhere(named):
            setting = "data.cache_dir" if self.folder else CACHE_VARIABLE
            raise UsageError(
                f"{setting} is {shown(named)}; expected a folder on this machine, not a URL"
            )
        return Path(named).expanduser().absolute()


def is_windowed(path: Path) -> bool:
    """Tell whether a file is read window by window and may therefore be evicted."""
    if path.parent.name == FETCHED:
        return path.name.startswith(("body.", "body@"))
    return path.suffix in (".tar", ".idx")


class Cache:
    """The folder, as one process sees it. Safe to use from several threads.

    Attributes:
        folder: Path of the folder.
        max_bytes: Most bytes that the folder may hold, including files that are being written.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """Make the folder.

        Raises:
            DataError: The folder cannot be made.
        """
        self.folder = settings.path
        self.max_bytes = settings.max_bytes
        self._locks = self.folder / ".locks"
        self._reserved = 0
        self._protected: frozenset[Path] = frozenset()
        self._in_use: dict[Path, int] = {}
        self._room_lock = threading.RLock()  # so that threads need not poll the file lock
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the cache {self.folder}: {error.strerror or error}; name another"
                f" folder with data.cache_dir or {CACHE_VARIABLE}"
            ) from error
        with self._room_lock, self._lock("room"):
            # Processes that use a set may be fetching: the ledger holds their reservations.
            if all(self._is_free(mark.parent) for mark in self.folder.glob(f"*/*/{_IN_USE}")):
                self._write_total(self._count())

    def __del__(self) -> None:
        """Release the sets in use."""
        for descriptor in getattr(self, "_in_use", {}).values():
            os.close(descriptor)

    def use(self, folder: Path) -> None:
        """Mark a set's folder as in use until this process ends or is killed."""
        if folder in self._in_use:
            return
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._in_use[folder] = descriptor

    def protect(self, paths: frozenset[Path]) -> None:
        """Name the windowed files to evict last: those of the current windows."""
        self._protected = paths

    @contextlib.contextmanager
    def fetching(self, path: Path) -> Iterator[bool]:
        """Hold the right to fetch one file.

        Yields:
            True if the file must be fetched, False if another thread or process fetched it.
        """
        # Named by its hash: the whole path as one name could exceed the file system's limit.
        name = path.relative_to(self.folder).as_posix()
        with self._lock(hashlib.sha256(name.encode()).hexdigest()):
            needed = not path.exists()
            if needed:
                path.parent.mkdir(parents=True, exist_ok=True)
                for left in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
                    left.unlink(missing_ok=True)
            yield needed

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Put a checked file from memory into the cache. Use within :meth:`fetching`."""
        with self._room(path, len(data)), atomic_file(path) as file:
            file.write(data)

    @contextlib.contextmanager
    def file(self, path: Path, size: int) -> Iterator[Path]:
        """Yield a temporary name for a file of this size; rename it to ``path`` afterwards.

        Use within :meth:`fetching`.
        """
        temporary = temporary_name(path)
        with self._room(path, size):
            try:
                yield temporary
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            fsync_folder(path.parent)

    def total(self) -> int:
        """Return the number of bytes in the cache."""
        return self._count()

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        from filelock import FileLock

        with FileLock(self._locks / name, thread_local=False, poll_interval=_POLL_S):
            yield

    @contextlib.contextmanager
    def _room(self, path: Path, size: int) -> Iterator[None]:
        """Free space for a file and count the file before it is written."""
        with self._room_lock, self._lock("room"):
            total = self._read_total()
            if total + size > self.max_bytes:
                total = self._evict(size, path)
            self._write_total(total + size)
            self._reserved += size
        written = False
        try:
            yield
            written = True
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}; the cache is {self.folder};"
                " set another folder with data.cache_dir"
            ) from error
        finally:
            with self._room_lock, self._lock("room"):
                self._reserved -= size
                if not written:
                    self._write_total(self._read_total() - size)

    def _evict(self, size: int, path: Path) -> int:
        """Remove files until ``size`` more bytes fit; return the remaining bytes."""
        files = list(self._files())
        held = self._reserved + sum(status.st_size for _, status in files)
        # The rest of the ledger belongs to fetches of other processes (or of a killed one): free
        # space for them too, but do not refuse because of them alone.
        others = max(self._read_total() - held, 0)
        total = held + others
        free = {
            folder: self._is_free(folder)
            for folder in {self.folder.joinpath(*self._parts(p)[:2]) for p, _ in files}
        }
        candidates = [
            (file in self._protected, status.st_mtime_ns, file, status.st_size)
            for file, status in files
            if is_windowed(file) or free[self.folder.joinpath(*self._parts(file)[:2])]
        ]
        for _, _, file, file_size in sorted(candidates):
            if total + size <= self.max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= file_size
        if (needed := total - others) + size > self.max_bytes:
            raise DataError(
                f"the cache {self.folder} may hold {self.max_bytes / GIB:.3g} GiB, of which"
                f" {needed / GIB:.3g} GiB are needed by the sets in use, and {path.name} of"
                f" {size / GIB:.3g} GiB no longer fits; raise data.cache_gib"
            )
        return total

    def _parts(self, path: Path) -> tuple[str, ...]:
        return path.relative_to(self.folder).parts

    def _is_free(self, folder: Path) -> bool:
        """Tell whether no process, including this one, has the set in this folder open."""
        try:
            descriptor = os.open(folder / _IN_USE, os.O_RDWR)
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield every file that counts: fetched files, and leftovers of other fetches."""
        own = f".tmp-{os.getpid()}-"  # counted as reservations
        for pattern in ("*/*/*.tar", "*/*/*.idx", "*/*/.*.tmp-*", f"*/*/columns/*/{FETCHED}/*"):
            for path in self.folder.glob(pattern):
                if own not in path.name:
                    with contextlib.suppress(FileNotFoundError):
                        yield path, path.stat()

    def _count(self) -> int:
        return sum(status.st_size for _, status in self._files())

    def _read_total(self) -> int:
        try:
            return int((self.folder / _LEDGER).read_text())
        except (OSError, ValueError):
            return self._count() + self._reserved

    def _write_total(self, total: int) -> None:
        # Not atomic and not synced: an unreadable total is counted again.
        (self.folder / _LEDGER).write_text(str(max(total, 0)))


_caches: dict[CacheSettings, Cache] = {}
_caches_lock = threading.Lock()


def open_cache(settings: CacheSettings) -> Cache:
    """Return the process's one cache of these settings, so that sets share its limit."""
    with _caches_lock:
        if settings not in _caches:
            _caches[settings] = Cache(settings)
        return _caches[settings]
