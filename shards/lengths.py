"""Summarise distributions of lengths: histogram, and how much text a maximum length keeps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_BINS = 12
_BAR = 40
WHOLE = (0.95, 0.99)
"""Shares of texts that a suggested maximum length leaves uncut."""
KEPT = (0.80, 0.90, 0.95, 0.99)
"""Shares of all text that a suggested maximum length keeps."""


@dataclass(frozen=True)
class Lengths:
    """How often each length occurs; at least one sample.

    Attributes:
        values: int64[k], the distinct lengths, ascending.
        counts: int64[k], number of samples of each length.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> "Lengths":
        """Count the lengths of samples, any integers [n]."""
        values, counts = np.unique(np.asarray(lengths), return_counts=True)
        return cls(values.astype(np.int64), counts)

    @property
    def num(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @property
    def total(self) -> int:
        """Sum of all lengths."""
        return int(self.values @ self.counts)

    @property
    def mean(self) -> float:
        """Mean length."""
        return self.total / self.num

    @property
    def max(self) -> int:
        """Longest length."""
        return int(self.values[-1])

    def percentile(self, share: float) -> float:
        """Return the length at ``share`` (0 to 1) of the sorted samples, interpolated linearly."""
        place = share * (self.num - 1)
        ends = np.cumsum(self.counts)
        low, high = (
            self.values[np.searchsorted(ends, at, side="right")]
            for at in (int(place), min(int(place) + 1, self.num - 1))
        )
        return float(low + (high - low) * (place - int(place)))

    def whole(self, limit: int) -> float:
        """Return the share of samples that are no longer than ``limit``."""
        return float(self.counts[self.values <= limit].sum()) / self.num

    def kept(self, limit: int) -> float:
        """Return the share of all text that is left after a cut to ``limit``."""
        return float(np.minimum(self.values, limit) @ self.counts) / max(self.total, 1)

    def limit_for_whole(self, share: float) -> int:
        """Return the smallest limit that leaves this share of the samples uncut."""
        ends = np.cumsum(self.counts)
        return int(self.values[np.searchsorted(ends, share * self.num, side="left")])

    def limit_for_kept(self, share: float) -> int:
        """Return the smallest limit that keeps this share of the sum of all lengths."""
        low, high = 0, self.max
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.kept(middle) >= share else (middle + 1, high)
        return low

    def histogram(self, bins: int = _BINS) -> list[tuple[int, int, int]]:
        """Return (from, to, samples) of equal bins up to the 99th percentile, then the rest."""
        end = max(int(self.percentile(0.99)), int(self.values[0]))
        first = int(self.values[0])
        width = max(1, -(-(end - first + 1) // bins))
        edges = list(range(first, end + 1, width))
        rows = []
        for start in edges:
            stop = start + width - 1
            inside = (self.values >= start) & (self.values <= stop)
            rows.append((start, stop, int(self.counts[inside].sum())))
        rest = int(self.counts[self.values > rows[-1][1]].sum())
        if rest:
            rows.append((rows[-1][1] + 1, self.max, rest))
        return rows

    def bars(self) -> list[str]:
        """Return the histogram as lines of text."""
        rows = self.histogram()
        most = max(count for *_, count in rows)
        names = [
            f"{start:,}" if start == stop else f"{start:,} to {stop:,}" for start, stop, _ in rows
        ]
        width = max(map(len, names))
        lines = []
        for name, (*_, count) in zip(names, rows, strict=True):
            bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
            lines.append(f"  {name:>{width}}  {100 * count / self.num:5.1f}%  {bar}".rstrip())
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {
            "mean": self.mean,
            "median": self.percentile(0.5),
            "p95": self.percentile(0.95),
            "max": self.max,
            "histogram": [list(row) for row in self.histogram()],
            "whole_at": {f"{share:.0%}": self.limit_for_whole(share) for share in WHOLE},
            "kept_at": {f"{share:.0%}": self.limit_for_kept(share) for share in KEPT},
        }
