"""Publish a shard set: lock its folder, fill a staging folder, write the manifest last.

All files are written to the staging folder and moved into place only when all samples exist. A
build that fails or is killed therefore leaves no shard set, and a forced build that fails leaves
the existing set unchanged.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from shards.errors import DataError, TinyNewsRecError
from shards.files import clear_leftovers, fsync_folder, remove
from shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardInfo,
    check_not_foreign,
    has_manifest,
    write_manifest,
)
from shards.reader import ShardSet
from shards.set_kinds import all_kinds, check_kind

REFUSED_NAME = "refused.jsonl"
FAILED_REPORT_NAME = "refused-by-failed-build.jsonl"
DUPLICATES_NAME = "duplicates.jsonl"
NOTED_NAME = "noted.jsonl"

_STAGING_PREFIX = ".building-"
_LOCK_NAME = ".building.lock"


class SetPublisher:
    """Holds the folder of a new set; use it as a context manager.

    If the block ends without :meth:`publish`, by an error or otherwise, no set is left behind.

    Attributes:
        folder: The set's folder.
        staging: The folder in it that receives files until they are published.
        kind: A name in :data:`shards.set_kinds.KINDS`.
        source: Inputs and options, for the manifest.
        counts: The manifest's counts.
        refused: Refused rows by reason.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kind: str,
        *,
        source: Mapping[str, Any] | None = None,
        articles_fingerprint: str | None = None,
        force: bool = False,
        work: str | None = None,
    ) -> None:
        """Prepare; change no file before the block is entered.

        Args:
            folder: The set's folder; made if it is missing.
            kind: A name in :data:`shards.set_kinds.KINDS`.
            source: Inputs and options, for the manifest.
            articles_fingerprint: Fingerprint of the article set whose rows the samples name.
            force: Replace an existing shard set and its columns.
            work: A name for work that can be continued: the staging folder then survives a kill,
                an interrupt and a full disk, and the next build that gives the same name continues
                with it; a build that gives another name removes it.

        Raises:
            ValueError: The kind is unknown.
        """
        check_kind(kind)
        self.folder = Path(folder)
        self.kind = kind
        self.source = dict(source or {})
        self.articles_fingerprint = articles_fingerprint
        self.force = force
        self.refused: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.resumable = work is not None
        name = f"work-{work}" if work is not None else f"{os.getpid()}-{secrets.token_hex(4)}"
        self.staging = self.folder / (_STAGING_PREFIX + name)
        self._report: IO[str] | None = None
        self._notes: IO[str] | None = None
        self._made_folder = False
        self._lock = FileLock(self.folder / _LOCK_NAME, timeout=0)

    def __enter__(self) -> "SetPublisher":
        """Make the folder, lock it and remove leftovers of an interrupted build.

        Raises:
            DataError: The folder holds a shard set, or shards of unknown origin (and ``force``
                is off), another build is writing there, or the folder is not writable.
        """
        if has_manifest(self.folder) and not self.force:
            raise DataError(
                f"{self.folder} already holds a shard set; choose another folder, or give --force"
                " to replace it together with its columns"
            )
        check_not_foreign(self.folder)
        try:
            self._made_folder = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._clear_leftovers()
            self.staging.mkdir(exist_ok=self.resumable)
        except Timeout as error:
            raise DataError(
                f"another build is writing {self.folder}; wait until it ends"
            ) from error
        except DataError:
            self._release()
            raise
        except OSError as error:
            self._release()
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the staging folder, unless its work can be continued; release the lock."""
        self._close_reports()
        # Errors of this project concern inputs or options: after a change nothing can be reused.
        if error is None or not self.resumable or isinstance(error, TinyNewsRecError):
            shutil.rmtree(self.staging, ignore_errors=True)
        self._release()

    def refuse(self, source: str, line: int, reason: str, excerpt: str = "") -> None:
        """Count a refused row and write it to the report ``refused.jsonl``.

        Args:
            source: Name of the input.
            line: Line number in the input, from 1 (for a row of several lines, its first).
            reason: One of a small number of short reasons, the key of the count.
            excerpt: The beginning of the row, or its wrong part.
        """
        if self._report is None:
            self._report = _open_report(self.staging / REFUSED_NAME)
        entry = {"source": source, "line": line, "reason": reason, "excerpt": excerpt}
        self._report.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def note(self, source: str, line: int, what: str, excerpt: str = "") -> None:
        """Write an oddity of a kept row to the report ``noted.jsonl``.

        Args:
            source: Name of the input.
            line: Line number in the input, from 1; 0 stands for the whole file.
            what: One of a small number of short phrases.
            excerpt: The text that the note is about.
        """
        if self._notes is None:
            self._notes = _open_report(self.staging / NOTED_NAME)
        entry = {"source": source, "line": line, "what": what, "excerpt": excerpt}
        self._notes.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def count(self, name: str, increment: int = 1) -> None:
        """Add to one of the manifest's counts."""
        self.counts[name] = self.counts.get(name, 0) + increment

    def keep_report(self) -> Path | None:
        """Keep the report of a build that is about to fail; return its path."""
        if self._report is None:
            return None
        self._report.close()
        self._report = None
        self._made_folder = False
        kept = self.folder / FAILED_REPORT_NAME
        (self.staging / REFUSED_NAME).replace(kept)
        return kept

    def publish(self, shards: Sequence[ShardInfo], fields: Sequence[str]) -> ShardSet:
        """Publish the set: move the staged files into place, write the manifest, open the set.

        Args:
            shards: The shards, in order; each is in the staging folder with its index.
            fields: The fields that occur in the samples.

        Raises:
            DataError: There are no shards.
        """
        if not shards:
            raise DataError(f"nothing to write to {self.folder}: no {self.kind} are left")
        for report in (self._report, self._notes):
            if report is not None:
                report.flush()
                os.fsync(report.fileno())
        self._close_reports()
        manifest = Manifest(
            kind=self.kind,
            shards=tuple(shards),
            fields=tuple(sorted(fields)),
            source=self.source,
            counts={"written": sum(shard.samples for shard in shards), **self.counts},
            refused=dict(sorted(self.refused.items())),
            articles_fingerprint=self.articles_fingerprint,
        )
        self._clear_former()
        names = [name for shard in shards for name in (shard.name, shard.index_name)]
        for name in names:
            (self.staging / name).replace(self.folder / name)
        for name in (REFUSED_NAME, NOTED_NAME, DUPLICATES_NAME):
            with contextlib.suppress(FileNotFoundError):
                (self.staging / name).replace(self.folder / name)
        fsync_folder(self.folder)
        write_manifest(self.folder, manifest)
        self._made_folder = False
        return ShardSet.open(self.folder)

    def _close_reports(self) -> None:
        for report in (self._report, self._notes):
            if report is not None:
                report.close()
        self._report = self._notes = None

    def _clear_leftovers(self) -> None:
        """Remove leftovers of an interrupted build, which its staging folder identifies."""
        leftovers = _leftovers(self.folder)
        orphans = [] if has_manifest(self.folder) else self._shard_files()
        if orphans and not leftovers and not self.force:
            raise DataError(
                f"{self.folder} has no manifest but holds {orphans[0].name}, which a build would"
                " replace; choose another folder, or give --force"
            )
        if orphans:
            self._clear_former()
        for leftover in leftovers:
            if leftover != self.staging:
                remove(leftover)
        clear_leftovers(self.folder)
        # An interrupted write left its temporary file.
        for half in self.staging.rglob(".*.tmp-*"):
            half.unlink(missing_ok=True)
        for name in (REFUSED_NAME, NOTED_NAME, DUPLICATES_NAME):
            (self.staging / name).unlink(missing_ok=True)

    def _shard_files(self) -> list[Path]:
        patterns = [f"{kind.prefix}-[0-9]*{s}" for kind in all_kinds() for s in (".tar", ".idx")]
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern))

    def _clear_former(self) -> None:
        # Remove the manifest first: until the new one exists, the folder is not a shard set.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in self._shard_files():
            path.unlink()
        for name in (REFUSED_NAME, FAILED_REPORT_NAME, NOTED_NAME, DUPLICATES_NAME):
            (self.folder / name).unlink(missing_ok=True)
        remove(self.folder / "columns")

    def _release(self) -> None:
        if self._lock.is_locked:
            (self.folder / _LOCK_NAME).unlink(missing_ok=True)
            self._lock.release()
        if self._made_folder and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _open_report(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f"{_STAGING_PREFIX}*-*"))


def clear_published(folder: Path) -> None:
    """Remove the staging folder of a build that was killed after its set was published."""
    clear_leftovers(folder)
    if not _leftovers(folder) and not (folder / _LOCK_NAME).exists():
        return
    with contextlib.suppress(Timeout, OSError), FileLock(folder / _LOCK_NAME, timeout=0):
        for leftover in _leftovers(folder):
            remove(leftover)
        (folder / _LOCK_NAME).unlink(missing_ok=True)
