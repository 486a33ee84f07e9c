"""Measure how well an order mixes a set, and how locally it reads.

*Travel* is the mean distance between a unit's place in the set and its place in the epoch; *apart*
is the mean distance in the epoch between two neighbours in the set. Both are shares of the value
for a uniform permutation of N units, N / 3. Shuffling whole shards makes units travel, but only the
window separates neighbours: by about window / N, so a set whose neighbours are alike (one day, one
source) needs a larger window. The price of a window is *locality*: the shards and the bytes that
must be available at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.order import EpochOrder

_MAX_UNITS = 500_000
_BATCHES = 100


@dataclass(frozen=True)
class Mixing:
    """Shuffle quality and locality of an order, measured in its first epoch."""

    units: int
    shards: int
    window_shards: int
    windows: int
    window_units: float
    """Units of a window, on average."""
    window_mib: float | None
    """Size of the shards of a window in MiB, on average; None if the sizes are unknown."""
    travel_pct: float
    """Mean distance from a unit's place in the set to its place in the epoch; 100 is uniform."""
    apart_pct: float
    """Mean distance in the epoch of neighbours in the set; 100 is uniform."""
    global_batch: int
    batch_shards: float
    """Number of shards that a global batch reads, on average."""
    measured_windows: int
    """Number of measured windows: all, or a sufficient part of a large set."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }

    def line(self) -> str:
        """Return the main values in one line for people."""
        size = "" if self.window_mib is None else f", {self.window_mib:,.1f} MiB"
        part = ""
        if self.measured_windows < self.windows:
            part = f" (measured in {self.measured_windows:,} of {self.windows:,} windows)"
        return (
            f"order: windows of {min(self.window_shards, self.shards):,} of {self.shards:,} shards "
            f"({self.window_units:,.0f} of {self.units:,} units{size}); of a uniform shuffle, "
            f"samples travel {self.travel_pct:.0f}% and neighbours come {self.apart_pct:.3g}% "
            f"apart{part}; a global batch of {self.global_batch:,} reads from "
            f"{self.batch_shards:.1f} shards"
        )


def measure_mixing(
    order: EpochOrder,
    global_batch: int,
    shard_bytes: Sequence[int] | None = None,
    *,
    max_units: int = _MAX_UNITS,
) -> Mixing:
    """Measure an order.

    Args:
        order: the order.
        global_batch: units per step, for the locality of one step.
        shard_bytes: sizes of the shards, if they are known.
        max_units: largest number of units to read: windows, and up to 100 global batches, are
            taken evenly over the epoch.
    """
    starts = order.window_starts(0)
    filled = np.flatnonzero(np.diff(starts))
    kept = max(1, min(len(filled), len(filled) * max_units // order.num_units))
    chosen = filled[np.arange(kept) * len(filled) // kept]
    travelled = np.zeros(2)  # sum, number
    apart = np.zeros(2)
    for window in chosen:
        places = np.arange(starts[window], starts[window + 1])
        units = order.rows(0, int(starts[window]), int(starts[window + 1]))
        travelled += np.abs(units - places).sum(), len(units)
        by_unit = np.argsort(units)
        gaps = np.abs(np.diff(places[by_unit]))[np.diff(units[by_unit]) == 1]
        apart += gaps.sum(), len(gaps)
    # Means of |i - p(i)| and |p(i) - p(i + 1)| over uniform permutations p of n.
    n = order.num_units
    travel = _share(travelled, (n * n - 1) / (3 * n))
    window_mib = None
    if shard_bytes is not None:
        window_mib = sum(shard_bytes) / 2**20 / len(filled)
    return Mixing(
        units=n,
        shards=len(order.counts),
        window_shards=order.window_shards,
        windows=len(filled),
        window_units=n / len(filled),
        window_mib=window_mib,
        travel_pct=travel,
        apart_pct=_share(apart, (n + 1) / 3),
        global_batch=global_batch,
        batch_shards=_shards_per_batch(order, global_batch, chosen, starts),
        measured_windows=len(chosen),
    )


def _share(sum_and_number: np.ndarray, uniform: float) -> float:
    """Return a mean as a percentage of the uniform one; 100 for no data."""
    total, number = sum_and_number
    return 100.0 * float(total / number / uniform) if number and uniform > 0 else 100.0


def _shards_per_batch(
    order: EpochOrder, global_batch: int, windows: np.ndarray, starts: np.ndarray
) -> float:
    """Compute the mean number of shards per global batch, over some windows."""
    kept = min(_BATCHES, len(windows))
    firsts = starts[windows[np.arange(kept) * len(windows) // kept]]
    numbers = []
    for first in -(-firsts // global_batch) * global_batch:
        rows, _ = order.span(int(first), int(first) + global_batch)
        shards = np.searchsorted(order.shard_starts, rows, side="right")
        numbers.append(len(np.unique(shards)))
    return float(np.mean(numbers))


def mixing_table(measured: Sequence[Mixing], name: str, unit: str) -> str:
    """Format orders side by side, as text for a terminal.

    Args:
        measured: the same set's orders, by window.
        name: name of the set.
        unit: what training visits, in the plural.
    """
    first = measured[0]
    lines = [
        f"{name}: {first.units:,} {unit} in {first.shards:,} shards; "
        f"global batch {first.global_batch:,}",
        "",
        f"{'window':>8}{unit:>12}{'MiB':>10}{'travel':>9}{'apart':>9}{'shards a batch':>16}",
    ]
    for each in measured:
        size = "" if each.window_mib is None else f"{each.window_mib:,.1f}"
        lines.append(
            f"{each.window_shards:>8,}{each.window_units:>12,.0f}{size:>10}"
            f"{each.travel_pct:>8.0f}%{each.apart_pct:>8.3g}%{each.batch_shards:>16.1f}"
        )
    lines += [
        "",
        "travel: mean distance from a sample's place in the set to its place in the epoch;",
        "apart: mean distance in the epoch of neighbours in the set; 100% is a uniform shuffle",
    ]
    part = min(each.measured_windows / each.windows for each in measured)
    if part < 1:
        lines.append(f"(measured in a part of the windows, at least {100 * part:.0f}% of them)")
    return "\n".join(lines)
