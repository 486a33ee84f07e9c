"""Write shards with webdataset's TarWriter and an index each, or whole sets of shards.

:mod:`shards.publish` describes how a set is published, and what a failure leaves.
"""

import contextlib
import functools
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson

from shards.files import atomic_file, sha256_file
from shards.index import TAR_BLOCK, IndexBuilder
from shards.manifest import DEFAULT_SAMPLES_PER_SHARD, ShardInfo, shard_name
from shards.publish import FAILED_REPORT_NAME, REFUSED_NAME, SetPublisher
from shards.reader import ShardSet, member_name, sample_key

# No user name and no time: the same samples give the same bytes anywhere. A float mtime would also
# add a PAX header of 1 KiB per member.
_TAR_OPTIONS: dict[str, Any] = dict(user="", group="", mode=0o444, encoder=False, mtime=0)


def encode_sample(sample: Mapping[str, Any]) -> bytes:
    """Encode a sample as its member's JSON: UTF-8, no spaces, keys in order.

    Raises:
        UnicodeEncodeError: A string holds half of a surrogate pair.
        ValueError: A number is NaN or infinite.
    """
    if all(type(value) is str for value in sample.values()):
        # For texts orjson writes the same bytes, six times as fast; for numbers it does not.
        with contextlib.suppress(orjson.JSONEncodeError):
            return orjson.dumps(sample)
    text = json.dumps(sample, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


@functools.cache
def _header_of_nothing() -> bytes:
    """Return the header that TarWriter writes before an empty sample."""
    from webdataset.writer import TarWriter

    file = io.BytesIO()
    with TarWriter(file, **_TAR_OPTIONS) as tar:
        tar.write({"__key__": sample_key(0), "json": b""})
    return file.getvalue()[:TAR_BLOCK]


def member_header(row: int, size: int) -> bytes:
    """Return a sample's tar header as TarWriter writes it, in a tenth of its time.

    The headers of two samples differ only in name, size and checksum (POSIX.1-1988, ustar: bytes 0
    to 99, 124 to 135 and 148 to 155; the checksum is the sum of all bytes with itself as blanks).

    Args:
        row: The sample's row.
        size: Number of bytes of its data, below 8 GiB.
    """
    header = bytearray(_header_of_nothing())
    name = member_name(row).encode("ascii")
    header[: len(name)] = name
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


class ShardFile:
    """One shard with its index during the write; the files appear when it is closed."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open ``name`` in ``folder`` under a temporary name."""
        from webdataset.writer import TarWriter

        self.path = folder / name
        self.index = IndexBuilder()
        self._context = atomic_file(self.path)
        self._file: IO[bytes] = self._context.__enter__()
        self._tar = TarWriter(self._file, **_TAR_OPTIONS)

    def add(self, row: int, payload: bytes) -> None:
        """Write the sample of a row."""
        stream = self._tar.tarstream
        self.index.add(stream.offset + TAR_BLOCK, payload)
        data = member_header(row, len(payload)) + payload + bytes(-len(payload) % TAR_BLOCK)
        stream.fileobj.write(data)
        stream.offset += len(data)

    def close(self) -> ShardInfo:
        """Put the tar and then its index in place; return their entry in the manifest."""
        self._tar.close()
        self._context.__exit__(None, None, None)
        self.index.write(self.path.with_suffix(".idx"))
        size = self.path.stat().st_size
        return ShardInfo(self.path.name, self.index.samples, size, sha256_file(self.path))

    def abort(self, error: BaseException) -> None:
        """Remove all temporary files."""
        # The tar writes its end when it is closed; on a full disk that fails once more.
        with contextlib.suppress(OSError):
            self._tar.close()
        self._context.__exit__(type(error), error, error.__traceback__)


class ShardWriter(SetPublisher):
    """Writes one shard set; a context manager whose last call is :meth:`finish`.

    If the block ends without :meth:`finish`, by an error or otherwise, no set is left behind.

    Example::

        with ShardWriter(folder, "articles", source={"synthesized": {"seed": 1}}) as writer:
            for article in articles:
                writer.add({"id": article.id, "title": article.title, "body": article.body})
            shard_set = writer.finish()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kind: str,
        *,
        samples_per_shard: int = DEFAULT_SAMPLES_PER_SHARD,
        source: Mapping[str, Any] | None = None,
        articles_fingerprint: str | None = None,
        force: bool = False,
    ) -> None:
        """Prepare; change no file before the block is entered.

        Args:
            folder: The set's folder; made if it is missing.
            kind: A name in :data:`shards.set_kinds.KINDS`.
            samples_per_shard: Number of samples in every shard but the last.
            source: Inputs and options, for the manifest.
            articles_fingerprint: Fingerprint of the article set whose rows the samples name.
            force: Replace an existing shard set and its columns.

        Raises:
            ValueError: The kind is unknown or ``samples_per_shard`` is not positive.
        """
        super().__init__(
            folder, kind, source=source, articles_fingerprint=articles_fingerprint, force=force
        )
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard {samples_per_shard}")
        self.samples_per_shard = samples_per_shard
        self.num_rows = 0
        self._fields: set[str] = set()
        self._shards: list[ShardInfo] = []
        self._open_shard: ShardFile | None = None

    def __enter__(self) -> "ShardWriter":
        """Prepare the folder, see :class:`SetPublisher`.

        Raises:
            DataError: The folder cannot be used.
        """
        super().__enter__()
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
        super().__exit__(error_type, error, traceback)

    def add(self, sample: Mapping[str, Any]) -> int:
        """Write the next sample and return its row number.

        Raises:
            UnicodeEncodeError: A string holds half of a surrogate pair; nothing is written then.
        """
        payload = encode_sample(sample)
        if self._open_shard is None:
            self._open_shard = ShardFile(self.staging, shard_name(self.kind, len(self._shards)))
        row = self.num_rows
        self._open_shard.add(row, payload)
        self._fields.update(sample)
        self.num_rows += 1
        if self._open_shard.index.samples == self.samples_per_shard:
            self._close_shard()
        return row

    def finish(self) -> ShardSet:
        """Publish the set: move the shards into place, write the manifest, open the set.

        Raises:
            DataError: No sample was written.
        """
        if self._open_shard is not None:
            self._close_shard()
        return self.publish(self._shards, tuple(self._fields))

    def _close_shard(self) -> None:
        shard, self._open_shard = self._open_shard, None
        if shard is not None:
            self._shards.append(shard.close())


__all__ = [
    "DEFAULT_SAMPLES_PER_SHARD",
    "FAILED_REPORT_NAME",
    "REFUSED_NAME",
    "ShardFile",
    "ShardWriter",
    "encode_sample",
]
