"""Order a shard set's units for training, and track the position in that order.

A unit is the origin of one sample: an article in post-training, a click in finetuning. The order of
an epoch is a pure function of (fingerprint, seed, epoch): shards are shuffled, cut into windows of
``window_shards`` shards, and the units of each window are permuted. Reads stay local, only the
current windows are in memory, and nothing depends on ranks, workers or prefetching.
:mod:`shards.mixing` measures how well an order mixes.

At the end of an epoch the stream of units continues with the next epoch, so every global batch is
full and every unit occurs exactly once per epoch. The batch that straddles the end holds rows of
both epochs.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from shards.errors import DataError

_WINDOWS_KEPT = 4
_PLANS_KEPT = 4


@dataclass(frozen=True)
class Position:
    """How far training has come: ``samples`` units of epoch ``epoch`` are consumed.

    ``num_units``, ``window_shards`` and ``global_batch`` serve to detect other batches; None (an
    older or hand-made position) skips that check.
    """

    fingerprint: str
    seed: int
    epoch: int
    samples: int
    num_units: int | None = None
    window_shards: int | None = None
    global_batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Position":
        """Parse the output of :meth:`to_dict`.

        Raises:
            DataError: a field is missing, unknown or of another type.
        """
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        missing = sorted({"fingerprint", "seed", "epoch", "samples"} - set(values))
        if unknown or missing:
            raise DataError(
                f"this is not a position in the data: missing fields {missing}, unknown {unknown}"
            )
        position = cls(**values)
        numbers = (position.seed, position.epoch, position.samples)
        if not isinstance(position.fingerprint, str) or not all(type(n) is int for n in numbers):
            raise DataError(f"this is not a position in the data: {dict(values)}")
        if position.epoch < 0 or position.samples < 0:
            raise DataError(f"a position cannot be negative: {dict(values)}")
        return position


@dataclass(frozen=True)
class PeerRows:
    """The units that all ranks read at the same time, rank by rank.

    Attributes:
        rows: int64[W, n], rows of the W ranks in order.
        epochs: int64[W, n], the epoch of each row.
        rank: number of this rank.
    """

    rows: np.ndarray
    epochs: np.ndarray
    rank: int


@dataclass(frozen=True)
class BatchRows:
    """The units of one batch.

    Attributes:
        rows: int64[n], unit numbers (rows of articles, or click units).
        epochs: int64[n], the epoch of each unit.
        position: the position after the *global* batch that these rows were cut from.
        peers: what the other ranks read meanwhile; None for a single rank.
    """

    rows: np.ndarray
    epochs: np.ndarray
    position: Position
    peers: PeerRows | None = None

    def __len__(self) -> int:
        """Return the number of units n."""
        return len(self.rows)

    def split(self, micro_batch: int) -> list["BatchRows"]:
        """Cut into micro-batches of ``micro_batch`` rows in order; the last one may be shorter.

        Raises:
            ValueError: ``micro_batch`` is below 1.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}, expected at least 1")
        starts = range(0, len(self.rows), micro_batch)
        return [self._part(slice(s, s + micro_batch)) for s in starts]

    def _part(self, part: slice) -> "BatchRows":
        peers = self.peers
        if peers is not None:
            peers = PeerRows(peers.rows[:, part], peers.epochs[:, part], peers.rank)
        return BatchRows(self.rows[part], self.epochs[part], self.position, peers)


def keyed_draws(key: Sequence[Any], n: int) -> np.ndarray:
    """Draw ``n`` random numbers, uint64[n], as a pure function of ``key``.

    NumPy guarantees that the raw stream of a bit generator never changes between versions; it does
    not guarantee this for ``Generator.permutation``.
    """
    digest = hashlib.sha256(json.dumps(list(key)).encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(n)


def keyed_permutation(key: Sequence[Any], n: int) -> np.ndarray:
    """Draw a permutation of ``range(n)``, int64[n], as a pure function of ``key`` and ``n``."""
    return np.argsort(keyed_draws(key, n), kind="stable").astype(np.int64, copy=False)


def _with_skipped(fingerprint: str, skipped: np.ndarray) -> str:
    """Return the fingerprint of the kept units; unchanged if no unit is skipped."""
    if not len(skipped):
        return fingerprint
    rows = skipped.astype("<i8").tobytes()
    return hashlib.sha256(fingerprint.encode() + b" without " + rows).hexdigest()


class EpochOrder:
    """The order of the units of a shard set in every epoch.

    Args:
        counts: units in each shard, in shard order; shards without units are allowed.
        fingerprint: identifies the units: the set's fingerprint, and the selection of its units.
        seed: the run's seed.
        window_shards: units are permuted within windows of this many shards.
        skipped: units to leave out (damaged samples), int64[k]; they are a part of the
            fingerprint.

    Raises:
        DataError: the order has no unit.
        ValueError: a count is negative, ``window_shards`` is below 1, or a skipped unit does not
            exist.
    """

    def __init__(
        self,
        counts: Sequence[int],
        fingerprint: str,
        seed: int,
        window_shards: int = 4,
        skipped: np.ndarray | None = None,
    ) -> None:
        """Sum the counts; compute no order yet."""
        self.counts = np.asarray(counts, dtype=np.int64)
        self.skipped = np.unique(np.asarray([] if skipped is None else skipped, dtype=np.int64))
        self.fingerprint = _with_skipped(fingerprint, self.skipped)
        self.seed = int(seed)
        self.window_shards = int(window_shards)
        if self.window_shards < 1:
            raise ValueError(f"window_shards is {window_shards}, expected at least 1")
        if (self.counts < 0).any():
            raise ValueError(f"a shard has a negative number of units: {self.counts.min()}")
        self.shard_starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        self.kept_counts = self.counts - self._skipped_per_shard()
        self.num_units = int(self.kept_counts.sum())
        if self.num_units == 0:
            raise DataError(
                f"there is nothing to train on: {len(self.counts)} shards hold no samples"
                f"{f' but {len(self.skipped)} damaged ones' if len(self.skipped) else ''}; "
                "check the shard set with `tnr shards stats`"
            )
        self._plan = lru_cache(maxsize=_PLANS_KEPT)(self._make_plan)
        self._window = lru_cache(maxsize=_WINDOWS_KEPT)(self._make_window)

    def _skipped_per_shard(self) -> np.ndarray:
        """Count the skipped units of each shard, int64[S]."""
        skipped, end = self.skipped, int(self.shard_starts[-1])
        if len(skipped) and (skipped[0] < 0 or skipped[-1] >= end):
            raise ValueError(f"skipped units {skipped[0]} .. {skipped[-1]} are not within 0:{end}")
        shards = np.searchsorted(self.shard_starts, skipped, side="right") - 1
        return np.bincount(shards, minlength=len(self.counts))

    def _make_plan(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Plan the epoch: shards of each window, and where each window starts (int64[W+1])."""
        shards = keyed_permutation(["shards", self.fingerprint, self.seed, epoch], len(self.counts))
        windows = [
            shards[i : i + self.window_shards] for i in range(0, len(shards), self.window_shards)
        ]
        sizes = [int(self.kept_counts[window].sum()) for window in windows]
        return windows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def _units_of_window(self, epoch: int, window: int) -> np.ndarray:
        """Return the units of one window of the epoch before they are permuted, int64[size]."""
        shards = self._plan(epoch)[0][window]
        units = np.concatenate(
            [np.arange(self.shard_starts[s], self.shard_starts[s + 1]) for s in shards]
        )
        if len(self.skipped):
            units = units[~np.isin(units, self.skipped, assume_unique=True)]
        return units

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        """Return the units of one window of the epoch in order, int64[size]."""
        units = self._units_of_window(epoch, window)
        return units[keyed_permutation(self._key("units", epoch, window), len(units))]

    def _key(self, what: str, epoch: int, window: int) -> list[Any]:
        """Return the key of the random numbers of one window."""
        return [what, self.fingerprint, self.seed, epoch, window]

    def window_starts(self, epoch: int) -> np.ndarray:
        """Return the start of each window in the epoch, and the end, int64[W + 1]."""
        return self._plan(epoch)[1]

    def shards_of_window(self, epoch: int, window: int) -> np.ndarray:
        """Return the shards of one window of the epoch, ascending, int64[s]."""
        return np.sort(self._plan(epoch)[0][window])

    def windows_of(self, epoch: int, units: np.ndarray) -> np.ndarray:
        """Return the window of the epoch that holds each unit, int64[n]."""
        windows = np.empty(len(self.counts), dtype=np.int64)
        for number, shards in enumerate(self._plan(epoch)[0]):
            windows[shards] = number
        return windows[np.searchsorted(self.shard_starts, units, side="right") - 1]

    def smallest_window(self) -> int:
        """Return the smallest number of units that a window of any epoch can hold."""
        last = len(self.counts) % self.window_shards or min(self.window_shards, len(self.counts))
        return int(np.sort(self.kept_counts)[:last].sum())

    def windows_from(self, position: Position) -> Iterator[list[int]]:
        """Yield, without end, the shards of each window from the one with a position on.

        Windows without units are left out.
        """
        first = position.samples
        for epoch in itertools.count(position.epoch):
            windows, starts = self._plan(epoch)
            for window, begin, end in zip(windows, starts[:-1], starts[1:], strict=True):
                if first < end and begin < end:
                    yield window.tolist()
            first = 0

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return units ``start`` to ``stop`` (exclusive) of ``epoch``, int64[stop - start].

        Raises:
            IndexError: the range is not within ``0 .. num_units``.
        """
        if not 0 <= start <= stop <= self.num_units:
            raise IndexError(f"units {start}:{stop} are not within 0:{self.num_units}")
        _, starts = self._plan(epoch)
        out = np.empty(stop - start, dtype=np.int64)
        window = int(np.searchsorted(starts, start, side="right")) - 1
        at = start
        while at < stop:
            end = min(stop, int(starts[window + 1]))
            if end > at:  # a window of empty shards has no units
                base = int(starts[window])
                out[at - start : end - start] = self._window(epoch, window)[at - base : end - base]
                at = end
            window += 1
        return out

    def span(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return units ``start`` to ``stop`` of the stream: (rows int64[n], epochs int64[n]).

        Both ends count from the beginning of epoch 0, and may be any number of epochs apart.
        """
        rows, epochs = [], []
        at = start
        while at < stop:
            epoch, offset = divmod(at, self.num_units)
            end = min(self.num_units, offset + stop - at)
            rows.append(self.rows(epoch, offset, end))
            epochs.append(np.full(end - offset, epoch, dtype=np.int64))
            at += end - offset
        if not rows:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        return np.concatenate(rows), np.concatenate(epochs)

    def position_at(self, total_samples: int) -> Position:
        """Return the position after ``total_samples`` units from the beginning of epoch 0."""
        epoch, samples = divmod(total_samples, self.num_units)
        return Position(
            self.fingerprint, self.seed, epoch, samples, self.num_units, self.window_shards
        )

    def total_at(self, position: Position) -> int:
        """Count the units since the beginning of epoch 0: the inverse of :meth:`position_at`.

        Raises:
            DataError: the position belongs to another order; the message names differing fields.
        """
        pairs = {
            "fingerprint": (position.fingerprint, self.fingerprint),
            "seed": (position.seed, self.seed),
            "num_units": (position.num_units, self.num_units),
            "window_shards": (position.window_shards, self.window_shards),
        }
        differing = [
            f"{name} is {theirs!r} there and {ours!r} here"
            for name, (theirs, ours) in pairs.items()
            if theirs is not None and theirs != ours
        ]
        if differing:
            raise DataError(
                "the position to resume from belongs to another order of samples: "
                + "; ".join(differing)
                + "; resume with the data and seed of that run, or start a new run"
            )
        if position.samples >= self.num_units:
            raise DataError(
                f"the position has {position.samples} samples consumed of an epoch of "
                f"{self.num_units}"
            )
        return position.epoch * self.num_units + position.samples
