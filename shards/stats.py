"""Compute a shard set's statistics: counts, lengths in words, categories, clicks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ColumnError, one_line
from shards.lengths import KEPT, WHOLE, Lengths
from shards.progress import progress
from shards.reader import ShardSet
from shards.set_kinds import kind_named
from shards.text_fields import TEXT_FIELDS

_CATEGORIES_SHOWN = 10


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
    """By the counted items: ``title words``, ``candidates``, …"""
    facts: dict[str, Any] = field(default_factory=dict)
    """Single values: users, clicks, first and last time, …"""
    categories: dict[str, int] = field(default_factory=dict)
    """Number of samples by category, the most frequent first."""

    fields: dict[str, int] = field(default_factory=dict)
    """Number of samples in which each field exists and is not empty."""
    duplicates: dict[str, int] = field(default_factory=dict)
    """Number of samples that repeat an earlier one, by the repeated part."""
    limits: dict[str, int] = field(default_factory=dict)
    """Length at which a token column cut its texts: longer lengths are unknown."""
    untold: str = ""
    """Reason for lengths in words: what is wrong with the token column."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return vars(self) | {"lengths": {name: v.to_dict() for name, v in self.lengths.items()}}

    def table(self) -> str:
        """Return everything as text for a terminal."""
        counter = kind_named(self.kind).counter
        lines = [
            f"{self.path}: {self.samples:,} {self.kind} in {self.shards:,} shards,"
            f" {self.bytes / 1e6:,.1f} MB, fingerprint {self.fingerprint[:12]}",
            "",
            f"{'per sample':<18}{'mean':>10}{'median':>10}{'p95':>10}{'max':>10}",
        ]
        for name, value in self.lengths.items():
            lines.append(
                f"{name:<18}{value.mean:>10.2f}{value.percentile(0.5):>10.0f}"
                f"{value.percentile(0.95):>10.0f}{value.max:>10,}"
            )
        sections = {
            "facts": self.facts,
            "build": self.counts,
            "refused": self.refused,
            "fields": {name: _share(n, self.samples) for name, n in self.fields.items()},
            f"{self.kind} that repeat an earlier one": {
                name: _share(n, self.samples) for name, n in self.duplicates.items()
            },
        }
        for title, entries in sections.items():
            if entries:
                lines += ["", title, *_rows(entries)]
        if self.categories:
            shown = dict(list(self.categories.items())[:_CATEGORIES_SHOWN])
            rest = len(self.categories) - len(shown)
            lines += ["", f"categories ({len(self.categories):,})", *_rows(shown)]
            lines += [f"  … and {rest:,} more"] if rest else []
        for name, value in self.lengths.items():
            if name not in counter.not_drawn:
                lines += ["", name, *value.bars()]
        lines += suggestions(self.lengths, self.limits, self.untold, counter.settings)
        return "\n".join(lines)


def compute_stats(shard_set: ShardSet | str | Path) -> Stats:
    """Read a whole shard set and compute its statistics.

    Raises:
        DataError: The folder is not a shard set.
        DamageError: A sample is damaged.
    """
    if not isinstance(shard_set, ShardSet):
        shard_set = ShardSet.open(shard_set)
    counter = kind_named(shard_set.kind).counter()
    tokens, limits, untold = token_lengths(shard_set)
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
        lengths={
            name: Lengths.of(np.frombuffer(values, dtype=np.uint32))
            for name, values in counter.lengths.items()
            if values
        }
        | tokens,
        facts=counter.facts(),
        categories=dict(counter.categories.most_common()),
        fields=dict(counter.fields),
        duplicates=counter.duplicates(),
        limits=limits,
        untold=untold,
    )


def token_lengths(shard_set: ShardSet) -> tuple[dict[str, Lengths], dict[str, int], str]:
    """Count lengths in tokens, including special tokens, and the lengths at which texts were cut.

    Both are empty if the set does not have exactly one complete token column; the text says why.
    """
    from shards.tokens import TokenColumn

    try:
        tokens = TokenColumn.open(shard_set)
    except ColumnError as error:
        return {}, {}, str(error)
    rows = np.arange(shard_set.num_rows)
    limits = {f"{field} tokens": limit for field, limit in tokens.limits.items()}
    lengths = {
        f"{field} tokens": Lengths.of(tokens.lengths(field, rows, limit))
        for field, limit in tokens.limits.items()
    }
    return lengths, limits, ""


def suggestions(
    lengths: dict[str, Lengths], limits: dict[str, int], untold: str, settings: Mapping[str, str]
) -> list[str]:
    """Format how much text maximum lengths of fields, and other ``settings``, would keep."""
    unit = "tokens" if limits else "words"
    lines: list[str] = []
    texts = {f"{field} {unit}": f"data.max_{field}_tokens" for field in TEXT_FIELDS}
    for name, setting in {**texts, **settings}.items():
        if name not in lengths:
            continue
        counted = lengths[name]
        cut = limits.get(name, counted.max + 1)  # a text of this length may have been longer
        whole = [
            f"{'over ' if counted.whole(cut - 1) < share else ''}"
            f"{min(counted.limit_for_whole(share), cut):,} for {share:.0%}"
            for share in WHOLE
        ]
        kept = [f"{counted.limit_for_kept(share):,} for {share:.0%}" for share in KEPT]
        lines += [
            f"  {name} ({setting})",
            f"    leave whole   {', '.join(whole)} of them",
            f"    keep          {', '.join(kept)} of all {name.split()[-1]}",
        ]
        if (at_cut := 1 - counted.whole(cut - 1)) > 0:
            lines.append(
                f"    {100 * at_cut:.1f}% have the {cut:,} at which the column cuts: longer text"
                " is not counted"
            )
    if unit == "words" and texts.keys() & lengths.keys():
        lines.append(f"  in words: {untold}")
    return ["", "maximum lengths to", *lines] if lines else []


def _rows(entries: dict[str, Any]) -> list[str]:
    """Format names and values in two columns."""
    shown = [(one_line(name), _show(value)) for name, value in entries.items()]
    width = max(23, *(len(name) for name, _ in shown))
    return [f"  {name:<{width}} {value}" for name, value in shown]


def _share(number: int, samples: int) -> str:
    return f"{number:,} ({100 * number / max(samples, 1):.3g}%)"


def _show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
