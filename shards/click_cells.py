"""Write the click column: from an impression set's tars to cells, shard by shard.

Any process may read shards; one process numbers users and commits cells, in the order of the
shards. Memory: one shard's arrays per process, and 12 bytes per user.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from math import floor
from typing import Any

import numpy as np

from shards.column_reader import ColumnReader
from shards.columns import ColumnWriter
from shards.errors import DataError
from shards.mind import iso_time
from shards.pool import Workers
from shards.progress import Progress
from shards.ragged import offsets_from_lengths, row_of_value
from shards.reader import ShardSet

CLICKS = "clicks"
_FORMAT = 1
UNKNOWN_TIME = -1
"""Value in the column for an impression without a readable time."""
EXPECTED_TIMES = "2019-11-15T08:55:22 (ISO 8601) or 11/15/2019 8:55:22 AM (MIND's)"
# Requires the date's hyphens: else Python takes 1602061200123 for a time in the year 1602.
_ISO_TIME = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d(:?\d\d(:?\d\d([.,]\d+)?)?)?(Z|[+-]\d\d(:?\d\d){0,2})?)?"
    r"|\d{8}(T\d\d(\d\d(\d\d([.,]\d+)?)?)?(Z|[+-]\d\d(\d\d)?)?)?",
    re.ASCII,
)
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800
_BLOCK = 1024  # samples decoded at a time


def parse_time(text: str) -> int:
    """Parse an ISO 8601 time or MIND's ``11/15/2019 8:55:22 AM`` to seconds since 1970 UTC.

    A time without a zone is taken as UTC. All else is :data:`UNKNOWN_TIME`: numbers of seconds or
    milliseconds, days that do not exist, times outside the years 1 to 9999 UTC, and the last second
    of 1969, which has the number of :data:`UNKNOWN_TIME`.
    """
    text = iso_time(text)
    if not _ISO_TIME.fullmatch(text):
        return UNKNOWN_TIME
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return UNKNOWN_TIME
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = floor(moment.timestamp())
    return seconds if _YEAR_1 <= seconds < _YEAR_10000 else UNKNOWN_TIME


def made_from() -> dict[str, Any]:
    """Return what a click column is made from, besides its shard set."""
    return {"format": _FORMAT}


def write_click_column(impression_set: ShardSet, workers: Workers | None = None) -> ColumnReader:
    """Write the ``clicks`` column from the tars of an impression set; keep existing cells.

    Args:
        impression_set: the set.
        workers: processes that read the tars; None reads them in this process.

    Raises:
        DataError: the set does not hold impressions, or a sample is not an impression.
        ColumnError: the column cannot be written.
    """
    if impression_set.kind != "impressions":
        raise DataError(f"{impression_set.path} holds {impression_set.kind}, not impressions")
    writer = ColumnWriter(impression_set, CLICKS, made_from())
    missing = writer.missing()
    if missing:
        # Users are numbered by first appearance in the whole log, so read all shards up to the last
        # missing one.
        shards = range(missing[-1] + 1)
        job = _ReadShard(impression_set, frozenset(missing))
        users = UserNumbers()
        rows = int(impression_set.shard_starts[len(shards)])
        with Progress(rows, "write click column", "impressions") as bar:
            read = (workers or Workers(1)).map(job.run, shards)
            for shard, (hashes, tensors) in zip(shards, read, strict=True):
                numbers = users.number(hashes)
                if tensors is not None:
                    writer.write(shard, tensors | {"user": numbers})
                bar.update(len(hashes))
    writer.clear_leftovers()
    return ColumnReader.open(impression_set, CLICKS, made_from())


def shard_tensors(
    impression_set: ShardSet, shard: int, users: "UserNumbers"
) -> dict[str, np.ndarray]:
    """Make the tensors of a cell of clicks from the samples of its shard.

    Args:
        impression_set: the set.
        shard: number of the shard.
        users: users of all earlier shards; this shard's users are added.

    Raises:
        DataError: a sample is not an impression.
        DamageError: the shard is damaged.
    """
    hashes, tensors = _ReadShard(impression_set, frozenset([shard])).run(shard)
    assert tensors is not None
    return tensors | {"user": users.number(hashes)}


class UserNumbers:
    """Numbers users by first appearance; a user is identified by a hash of 64 bits.

    (Two of a million users share a hash in one of 37 million logs.)
    """

    def __init__(self) -> None:
        """Start without users."""
        self._hashes = np.empty(0, dtype=np.uint64)
        self._numbers = np.empty(0, dtype=np.int32)

    def number(self, hashes: np.ndarray) -> np.ndarray:
        """Assign numbers to the next users in the log.

        Args:
            hashes: uint64[n].

        Returns:
            int32[n].
        """
        unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        place = np.searchsorted(self._hashes, unique)
        known = np.zeros(len(unique), dtype=bool)
        inside = place < len(self._hashes)
        known[inside] = self._hashes[place[inside]] == unique[inside]
        numbers = np.empty(len(unique), dtype=np.int32)
        numbers[known] = self._numbers[place[known]]
        order = np.argsort(first[~known])
        fresh = np.empty(len(order), dtype=np.int32)
        fresh[order] = len(self._hashes) + np.arange(len(order), dtype=np.int32)
        numbers[~known] = fresh
        self._hashes = np.insert(self._hashes, place[~known], unique[~known])
        self._numbers = np.insert(self._numbers, place[~known], fresh)
        return numbers[inverse]


@dataclass(frozen=True)
class _ReadShard:
    """Reads one shard; picklable, so that other processes can run it."""

    impression_set: ShardSet
    missing: frozenset[int]

    def run(self, shard: int) -> tuple[np.ndarray, dict[str, np.ndarray] | None]:
        """Return the users' hashes, uint64[n], and all tensors but ``user`` if the cell is missing.

        Raises:
            DataError: a sample is not an impression.
            DamageError: the shard is damaged.
        """
        labelled = self.impression_set.manifest.labelled
        wanted = shard in self.missing
        first_row = int(self.impression_set.shard_starts[shard])
        hashes, parts = [], []
        all_samples = self.impression_set.samples(shard)
        while samples := list(islice(all_samples, _BLOCK)):
            digests = [_digest(sample.get("user", "")) for sample in samples]
            hashes.append(np.frombuffer(b"".join(digests), dtype="<u8"))
            if wanted:
                parts.append(_arrays(samples, labelled, first_row))
                first_row += len(samples)
        tensors = _joined(parts, int(self.impression_set.shard_starts[shard])) if wanted else None
        return np.concatenate(hashes), tensors


def _digest(user: Any) -> bytes:
    return hashlib.blake2b(str(user).encode("utf-8"), digest_size=8).digest()


def _arrays(samples: list[dict[str, Any]], labelled: bool, first_row: int) -> dict[str, np.ndarray]:
    """Return the values and lengths of some samples."""
    try:
        arrays = {"time": np.array([parse_time(str(s.get("time", ""))) for s in samples], np.int64)}
        fields: dict[str, tuple[list[Any], type]] = {
            "history": ([s.get("history", []) for s in samples], np.int32),
            "candidates": ([s["candidates"] for s in samples], np.int32),
        }
        if labelled:
            fields["clicked"] = ([s["clicks"] for s in samples], np.uint8)
        for name, (rows, dtype) in fields.items():
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
            flat = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
            limits = np.iinfo(dtype)
            if len(flat) and not limits.min <= flat.min() <= flat.max() <= limits.max:
                raise OverflowError(f"{name} holds {flat.min()} to {flat.max()}")
            arrays[name + ".values"] = flat.astype(dtype)
            arrays[name + ".lengths"] = lengths
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"one of the impressions from row {first_row} on cannot be used: {error!r}; "
            "build the set again"
        ) from error
    return arrays


def _joined(parts: list[dict[str, np.ndarray]], first_row: int) -> dict[str, np.ndarray]:
    """Join the arrays of samples into the tensors of a cell."""
    tensors = {}
    for name in parts[0]:
        array = np.concatenate([part[name] for part in parts])
        if name.endswith(".lengths"):
            name, array = name.removesuffix("lengths") + "offsets", offsets_from_lengths(array)
        tensors[name] = array
    if "clicked.values" in tensors:
        clicked, offsets = tensors["clicked.values"], tensors["candidates.offsets"]
        if (tensors["clicked.offsets"] != offsets).any() or (clicked > 1).any():
            row = first_row + _first_bad(tensors)
            raise DataError(
                f"impression {row}: expected one click label, 0 or 1, per candidate; build the set "
                "again"
            )
        tensors["units.values"], tensors["units.offsets"] = _units(
            tensors["candidates.values"], clicked, offsets
        )
    return tensors


def _first_bad(tensors: Mapping[str, np.ndarray]) -> int:
    """Find the first row whose click labels are not 0 or 1, one per candidate."""
    clicked, offsets = tensors["clicked.values"], tensors["clicked.offsets"]
    bad = np.diff(offsets) != np.diff(tensors["candidates.offsets"])
    bad[row_of_value(offsets, np.flatnonzero(clicked > 1))] = True
    return int(np.argmax(bad))


def _units(
    candidates: np.ndarray, clicked: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the trainable clicks among the candidates: (places int32[k], offsets int64[n + 1])."""
    places = np.flatnonzero(clicked)
    rows = row_of_value(offsets, places)
    negatives = row_of_value(offsets, negative_places(candidates, clicked, offsets))
    keep = np.bincount(negatives, minlength=len(offsets) - 1)[rows] > 0
    kept_rows = rows[keep]
    lengths = np.bincount(kept_rows, minlength=len(offsets) - 1)
    return (places[keep] - offsets[kept_rows]).astype(np.int32), offsets_from_lengths(lengths)


def negative_places(candidates: np.ndarray, clicked: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Find values whose article was not clicked anywhere in its impression: places int64[k]."""
    unclicked = np.flatnonzero(clicked == 0)
    if not len(unclicked):
        return unclicked
    impressions = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = impressions * (int(candidates.max()) + 1) + candidates
    return unclicked[np.isin(pairs[unclicked], pairs[clicked != 0], invert=True)]
