"""Publishing a shard set: a folder under a lock, a hidden staging folder in it, the manifest last.

Everything is written to the staging folder and moved into place only when all samples are there. A
build that fails or is killed therefore leaves no shard set, and does not touch the one that a
forced build was to replace.
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
    """Holds the folder of a set that is being made; use it as a context manager.

    Leaving the block without :meth:`publish`, by an error or otherwise, leaves no set behind.

    Attributes:
        folder: The set's folder.
        staging: The folder in it that files are written to until they are published.
        kind: A name in :data:`shards.set_kinds.KINDS`.
        source: What the manifest says about inputs and options.
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
        """Prepare; nothing is touched before the block is entered.

        Args:
            folder: The set's folder; made if it is missing.
            kind: A name in :data:`shards.set_kinds.KINDS`.
            source: What the manifest says about inputs and options.
            articles_fingerprint: Fingerprint of the article set whose rows the samples name.
            force: Replace a shard set that is already there, and its columns.
            work: A name for work that can be gone on with: the staging folder then outlives a
                kill, an interrupt and a full disk, and is found again by the next build that
                gives the same name; one that gives another name removes it.

        Raises:
            ValueError: If the kind is unknown.
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
        """Make the folder, take its lock and clear what an interrupted build left.

        Raises:
            DataError: If the folder holds a shard set, or shards of unknown origin (and ``force``
                is off), another build is writing there, or it cannot be written.
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
        """Remove the staging folder, unless its work is to be gone on with; release the lock."""
        self._close_reports()
        # What we say ourselves is about the inputs or the options: with others, nothing is reused.
        if error is None or not self.resumable or isinstance(error, TinyNewsRecError):
            shutil.rmtree(self.staging, ignore_errors=True)
        self._release()

    def refuse(self, source: str, line: int, reason: str, excerpt: str = "") -> None:
        """Count a refused row and write it to the report ``refused.jsonl``.

        Args:
            source: Name of the input.
            line: Line number in it, from 1 (of a row of several lines: its first).
            reason: One of a small number of short reasons, the key of the count.
            excerpt: The beginning of the row, or what is wrong in it.
        """
        if self._report is None:
            self._report = _open_report(self.staging / REFUSED_NAME)
        entry = {"source": source, "line": line, "reason": reason, "excerpt": excerpt}
        self._report.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def note(self, source: str, line: int, what: str, excerpt: str = "") -> None:
        """Write what is odd about a row that is kept to the report ``noted.jsonl``.

        Args:
            source: Name of the input.
            line: Line number in it, from 1; 0: of the file as a whole.
            what: One of a small number of short phrases.
            excerpt: What it is about.
        """
        if self._notes is None:
            self._notes = _open_report(self.staging / NOTED_NAME)
        entry = {"source": source, "line": line, "what": what, "excerpt": excerpt}
        self._notes.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def count(self, name: str, increment: int = 1) -> None:
        """Add to one of the manifest's counts."""
        self.counts[name] = self.counts.get(name, 0) + increment

    def keep_report(self) -> Path | None:
        """Keep the report of a build that is about to fail, and return where it is."""
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
            DataError: If there is no shard.
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
        """Remove what an interrupted build left; its staging folder tells that it was a build."""
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
        # A write that was cut off left its temporary file.
        for half in self.staging.rglob(".*.tmp-*"):
            half.unlink(missing_ok=True)
        for name in (REFUSED_NAME, NOTED_NAME, DUPLICATES_NAME):
            (self.staging / name).unlink(missing_ok=True)

    def _shard_files(self) -> list[Path]:
        patterns = [f"{kind.prefix}-[0-9]*{s}" for kind in all_kinds() for s in (".tar", ".idx")]
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern))

    def _clear_former(self) -> None:
        # The manifest goes first: from here until the new one is there the folder is no shard set.
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
    """Remove the staging folder of a build that was killed when its set was already published."""
    clear_leftovers(folder)
    if not _leftovers(folder) and not (folder / _LOCK_NAME).exists():
        return
    with contextlib.suppress(Timeout, OSError), FileLock(folder / _LOCK_NAME, timeout=0):
        for leftover in _leftovers(folder):
            remove(leftover)
        (folder / _LOCK_NAME).unlink(missing_ok=True)
