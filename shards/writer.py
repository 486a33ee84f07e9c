"""Writing a shard set: tars by webdataset's TarWriter, an index each, the manifest last.

Everything is written to a hidden staging folder inside the set's folder and moved into place only
when all samples are there. A build that fails or is killed therefore leaves no shard set, and does
not touch the one that a forced build was to replace.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

from shards.errors import DataError
from shards.files import atomic_file, fsync_folder, sha256_file
from shards.index import TAR_BLOCK, IndexBuilder
from shards.manifest import (
    ARTICLES,
    DEFAULT_SAMPLES_PER_SHARD,
    MANIFEST_NAME,
    SHARD_PREFIX,
    Manifest,
    ShardInfo,
    check_not_foreign,
    has_manifest,
    shard_name,
    write_manifest,
)
from shards.reader import ShardSet, sample_key

REFUSED_NAME = "refused.jsonl"
FAILED_REPORT_NAME = "refused-by-failed-build.jsonl"

_STAGING_PREFIX = ".building-"
_LOCK_NAME = ".building.lock"
_MEMBER_MODE = 0o444


def encode_sample(sample: Mapping[str, Any]) -> bytes:
    """Return a sample as the JSON bytes of its member: UTF-8, no spaces, keys in the order given.

    Raises:
        UnicodeEncodeError: If a string holds half of a surrogate pair.
        ValueError: If a number is NaN or infinite.
    """
    text = json.dumps(sample, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


class _ShardFile:
    """One shard being written, with its index."""

    def __init__(self, folder: Path, name: str) -> None:
        from webdataset.writer import TarWriter

        self.path = folder / name
        self.index = IndexBuilder()
        # No user's name, no time: the same samples give the same bytes anywhere. A float mtime
        # would also cost a PAX header of 1 KiB a member.
        self._context = atomic_file(self.path)
        self._file: IO[bytes] = self._context.__enter__()
        self._tar = TarWriter(
            self._file, user="", group="", mode=_MEMBER_MODE, encoder=False, mtime=0
        )

    def add(self, row: int, payload: bytes) -> None:
        # A short name and whole numbers need no extension: one header block before the data.
        self.index.add(self._tar.tarstream.offset + TAR_BLOCK, payload)
        self._tar.write({"__key__": sample_key(row), "json": payload})

    def close(self) -> ShardInfo:
        self._tar.close()
        self._context.__exit__(None, None, None)
        self.index.write(self.path.with_suffix(".idx"))
        size = self.path.stat().st_size
        return ShardInfo(self.path.name, self.index.samples, size, sha256_file(self.path))

    def abort(self, error: BaseException) -> None:
        # The tar writes its end when it is closed; on a full disk that fails once more.
        with contextlib.suppress(OSError):
            self._tar.close()
        self._context.__exit__(type(error), error, error.__traceback__)


class ShardWriter:
    """Writes one shard set; use it as a context manager and call :meth:`finish` at the end.

    Leaving the block without :meth:`finish`, by an error or otherwise, leaves no set behind.

    Example::

        with ShardWriter(folder, "articles", source={"synthesized": {"seed": 1}}) as writer:
            for article in articles:
                writer.add({"id": article.id, "title": article.title, "body": article.body})
            shard_set = writer.finish()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kind: str = ARTICLES,
        *,
        samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
        source: Mapping[str, Any] | None = None,
        articles_fingerprint: str | None = None,
        force: bool = False,
    ) -> None:
        """Prepare to write; nothing is touched before the block is entered.

        Args:
            folder: The set's folder; made if it is missing.
            kind: ``articles`` or ``impressions``.
            samples_per_shard: Samples in every shard but the last.
            source: What the manifest says about inputs and options.
            articles_fingerprint: Fingerprint of the article set that impressions refer to.
            force: Replace a shard set that is already there, and its columns.

        Raises:
            ValueError: If the kind is unknown or ``samples_per_shard`` is not positive.
        """
        if kind not in SHARD_PREFIX or samples_per_shard < 1:
            raise ValueError(f"kind {kind!r}, samples_per_shard {samples_per_shard}")
        self.folder = Path(folder)
        self.kind = kind
        self.samples_per_shard = samples_per_shard
        self.source = dict(source or {})
        self.articles_fingerprint = articles_fingerprint
        self.force = force
        self.refused: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.num_rows = 0
        self.staging = self.folder / f"{_STAGING_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        self._fields: set[str] = set()
        self._shards: list[ShardInfo] = []
        self._open_shard: _ShardFile | None = None
        self._report: IO[str] | None = None
        self._made_folder = False
        self._lock = FileLock(self.folder / _LOCK_NAME, timeout=0)

    def __enter__(self) -> "ShardWriter":
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
            self.staging.mkdir()
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
        """Remove the staging folder and release the lock."""
        if self._open_shard is not None:
            self._open_shard.abort(error or RuntimeError("not finished"))
            self._open_shard = None
        if self._report is not None:
            self._report.close()
            self._report = None
        shutil.rmtree(self.staging, ignore_errors=True)
        self._release()

    def add(self, sample: Mapping[str, Any]) -> int:
        """Write the next sample and return its row number.

        Raises:
            UnicodeEncodeError: If a string holds half of a surrogate pair; nothing is written then.
        """
        payload = encode_sample(sample)
        if self._open_shard is None:
            name = shard_name(self.kind, len(self._shards))
            self._open_shard = _ShardFile(self.staging, name)
        row = self.num_rows
        self._open_shard.add(row, payload)
        self._fields.update(sample)
        self.num_rows += 1
        if self._open_shard.index.samples == self.samples_per_shard:
            self._close_shard()
        return row

    def refuse(self, source: str, line: int, reason: str, excerpt: str = "") -> None:
        """Count a refused row and write it to the report ``refused.jsonl``.

        Args:
            source: Name of the input.
            line: Line number in it, from 1 (of a row of several lines: its first).
            reason: One of a small number of short reasons, the key of the count.
            excerpt: The beginning of the row, or what is wrong in it.
        """
        if self._report is None:
            path = self.staging / REFUSED_NAME
            self._report = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        entry = {"source": source, "line": line, "reason": reason, "excerpt": excerpt}
        self._report.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.refused[reason] = self.refused.get(reason, 0) + 1

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

    def finish(self) -> ShardSet:
        """Publish the set: move the shards into place, write the manifest, open the set.

        Raises:
            DataError: If no sample was written.
        """
        if self._open_shard is not None:
            self._close_shard()
        if not self._shards:
            raise DataError(f"nothing to write to {self.folder}: no {self.kind} are left")
        if self._report is not None:
            self._report.flush()
            os.fsync(self._report.fileno())
            self._report.close()
            self._report = None
        manifest = Manifest(
            kind=self.kind,
            shards=tuple(self._shards),
            fields=tuple(sorted(self._fields)),
            source=self.source,
            counts={"written": self.num_rows, **self.counts},
            refused=dict(sorted(self.refused.items())),
            articles_fingerprint=self.articles_fingerprint,
        )
        self._clear_former()
        for path in sorted(self.staging.iterdir()):
            path.replace(self.folder / path.name)
        fsync_folder(self.folder)
        write_manifest(self.folder, manifest)
        self._made_folder = False
        return ShardSet.open(self.folder)

    def _close_shard(self) -> None:
        shard, self._open_shard = self._open_shard, None
        if shard is not None:
            self._shards.append(shard.close())

    def _clear_leftovers(self) -> None:
        """Remove what an interrupted build left; its staging folder tells that it was a build."""
        leftovers = list(self.folder.glob(f"{_STAGING_PREFIX}*-*"))
        orphans = [] if has_manifest(self.folder) else self._shard_files()
        if orphans and not leftovers and not self.force:
            raise DataError(
                f"{self.folder} has no manifest but holds {orphans[0].name}, which a build would"
                " replace; choose another folder, or give --force"
            )
        if orphans:
            self._clear_former()
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)

    def _shard_files(self) -> list[Path]:
        prefixes, suffixes = SHARD_PREFIX.values(), (".tar", ".idx")
        patterns = [f"{prefix}-[0-9]*{suffix}" for prefix in prefixes for suffix in suffixes]
        return sorted(path for pattern in patterns for path in self.folder.glob(pattern))

    def _clear_former(self) -> None:
        # The manifest goes first: from here until the new one is there the folder is no shard set.
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in self._shard_files():
            path.unlink()
        for name in (REFUSED_NAME, FAILED_REPORT_NAME):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "columns", ignore_errors=True)

    def _release(self) -> None:
        if self._lock.is_locked:
            (self.folder / _LOCK_NAME).unlink(missing_ok=True)
            self._lock.release()
        if self._made_folder and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


__all__ = [
    "DEFAULT_SAMPLES_PER_SHARD",
    "FAILED_REPORT_NAME",
    "REFUSED_NAME",
    "ShardWriter",
    "encode_sample",
]
