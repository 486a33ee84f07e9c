"""What a shard set holds, in numbers: counts, lengths in words, categories, clicks."""

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import ARTICLES
from shards.progress import progress
from shards.reader import ShardSet

_CATEGORIES_SHOWN = 10


@dataclass(frozen=True)
class Lengths:
    """Mean, median, 95th percentile and maximum of a number that each sample has."""

    mean: float
    median: float
    p95: float
    max: int

    @classmethod
    def of(cls, values: array) -> "Lengths":
        """Summarise ``values`` (one number a sample; at least one)."""
        numbers = np.frombuffer(values, dtype=f"u{values.itemsize}")
        median, p95 = np.percentile(numbers, [50, 95])
        return cls(float(numbers.mean()), float(median), float(p95), int(numbers.max()))


@dataclass(frozen=True)
class Stats:
    """Numbers of one shard set."""

    path: str
    kind: str
    fingerprint: str
    samples: int
    shards: int
    bytes: int
    counts: dict[str, int]
    refused: dict[str, int]
    lengths: dict[str, Lengths]
    """By what is counted: ``title words``, ``candidates``, …"""
    facts: dict[str, Any] = field(default_factory=dict)
    """Single values: users, clicks, first and last time, …"""
    categories: dict[str, int] = field(default_factory=dict)
    """Articles by category, the most frequent first."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        lengths = {name: vars(summary) for name, summary in self.lengths.items()}
        return vars(self) | {"lengths": lengths}

    def table(self) -> str:
        """Return everything as text for a terminal."""
        lines = [
            f"{self.path}: {self.samples:,} {self.kind} in {self.shards:,} shards,"
            f" {self.bytes / 1e6:,.1f} MB, fingerprint {self.fingerprint[:12]}",
            "",
            f"{'per sample':<18}{'mean':>10}{'median':>10}{'p95':>10}{'max':>10}",
        ]
        for name, value in self.lengths.items():
            lines.append(
                f"{name:<18}{value.mean:>10.2f}{value.median:>10.0f}{value.p95:>10.0f}"
                f"{value.max:>10,}"
            )
        for title, entries in (("facts", self.facts), ("build", self.counts)):
            if entries:
                lines += ["", title, *(f"  {name:<24}{_show(v)}" for name, v in entries.items())]
        if self.refused:
            lines += ["", "refused", *(f"  {name:<24}{n:,}" for name, n in self.refused.items())]
        if self.categories:
            shown = list(self.categories.items())[:_CATEGORIES_SHOWN]
            rest = len(self.categories) - len(shown)
            lines += ["", f"categories ({len(self.categories):,})"]
            lines += [f"  {name:<24}{number:,}" for name, number in shown]
            lines += [f"  … and {rest:,} more"] if rest else []
        return "\n".join(lines)


def compute_stats(shard_set: ShardSet | str | Path) -> Stats:
    """Read a whole shard set and count.

    Raises:
        DataError: If there is no shard set.
        DamageError: If a sample is damaged.
    """
    if not isinstance(shard_set, ShardSet):
        shard_set = ShardSet.open(shard_set)
    counter: _Counter = _ArticleCounter() if shard_set.kind == ARTICLES else _ImpressionCounter()
    for sample in progress(shard_set, shard_set.num_rows, "count", shard_set.kind):
        counter.add(sample)
    return Stats(
        path=str(shard_set.path),
        kind=shard_set.kind,
        fingerprint=shard_set.fingerprint,
        samples=shard_set.num_rows,
        shards=shard_set.num_shards,
        bytes=sum(shard.bytes for shard in shard_set.shards),
        counts=shard_set.manifest.counts,
        refused=shard_set.manifest.refused,
        lengths={name: Lengths.of(values) for name, values in counter.lengths.items() if values},
        facts=counter.facts(),
        categories=dict(counter.categories.most_common()),
    )


class _Counter(ABC):
    """Takes one sample after the other; four bytes a sample and length are kept."""

    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.lengths = {name: array("I") for name in self.names}
        self.categories: Counter[str] = Counter()

    @abstractmethod
    def add(self, sample: dict[str, Any]) -> None: ...

    @abstractmethod
    def facts(self) -> dict[str, Any]: ...


class _ArticleCounter(_Counter):
    names = ("title words", "body words", "abstract words")

    def add(self, sample: dict[str, Any]) -> None:
        self.lengths["title words"].append(len(sample["title"].split()))
        self.lengths["body words"].append(len(sample["body"].split()))
        if "abstract" in sample:
            self.lengths["abstract words"].append(len(sample["abstract"].split()))
        if "category" in sample:
            self.categories[sample["category"]] += 1

    def facts(self) -> dict[str, Any]:
        return {"empty bodies": sum(not words for words in self.lengths["body words"])}


class _ImpressionCounter(_Counter):
    names = ("history", "candidates", "clicks")

    def __init__(self) -> None:
        super().__init__()
        self._users: set[str] = set()
        self._times: list[str] = []

    def add(self, sample: dict[str, Any]) -> None:
        self.lengths["history"].append(len(sample["history"]))
        self.lengths["candidates"].append(len(sample["candidates"]))
        if "clicks" in sample:
            self.lengths["clicks"].append(sum(sample["clicks"]))
        self._users.add(sample["user"])
        if time := sample["time"]:
            times = [*self._times, time]
            self._times = [min(times), max(times)]

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "users": len(self._users),
            "empty histories": sum(not length for length in self.lengths["history"]),
            "labelled": "yes" if self.lengths["clicks"] else "no",
        }
        if self.lengths["clicks"]:
            facts["clicks"] = sum(self.lengths["clicks"])
        if self._times:
            facts["first time"], facts["last time"] = self._times
        return facts


def _show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
