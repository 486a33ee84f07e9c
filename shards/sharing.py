"""Measure how many of the titles that a batch of clicks names are distinct.

The work of a finetuning step grows with the distinct titles of its batch, as each is encoded once.
Their number depends on how popular the popular titles are, on how many clicks of one user come
together (:mod:`shards.block_order`), and on whether ranks share titles.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.click_batch import ClickRule, read_clicks
from shards.clicks import ClickColumn
from shards.mixing import Mixing
from shards.order import EpochOrder

_BATCHES = 40
WORTH_SHARING = 0.9
"""``data.share_titles auto``: ranks share titles if at most this part of them is left."""


@dataclass(frozen=True)
class Sharing:
    """Titles of a forward pass; means over batches taken evenly over the first epoch."""

    micro_batch: int
    """Clicks of a forward pass on one rank."""
    ranks: int
    users: float
    """Number of users in a micro-batch, hence of independent histories."""
    named: float
    """Titles that a micro-batch names in filled history slots and as candidates."""
    distinct: float
    """Distinct titles among the named ones."""
    most_distinct: float
    """Distinct titles on the rank with the most, for which the others wait."""
    distinct_over_ranks: float
    """Distinct titles in the micro-batches of all ranks together."""

    @property
    def kept_over_ranks(self) -> float:
        """Titles that a rank encodes with sharing, relative to the rank with the most without."""
        return self.distinct_over_ranks / (self.ranks * self.most_distinct)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }

    def line(self) -> str:
        """Return everything in one line for people."""
        over_ranks = ""
        if self.ranks > 1:
            over_ranks = (
                f"; of {self.ranks} ranks the one with the most has {self.most_distinct:,.0f}, and "
                f"would have {100 * self.kept_over_ranks:.0f}% of them if all shared theirs"
            )
        return (
            f"titles: a micro-batch of {self.micro_batch:,} clicks of {self.users:,.1f} users "
            f"names {self.named:,.0f}, {self.distinct:,.0f} of them distinct{over_ranks}"
        )


@dataclass(frozen=True)
class SharingChoice:
    """The decision of ``data.share_titles auto``, and the counts behind it."""

    sharing: Sharing

    @property
    def is_shared(self) -> bool:
        """Whether ranks share titles."""
        return self.sharing.kept_over_ranks <= WORTH_SHARING

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        counts = self.sharing.to_dict()
        return {"chosen": "all" if self.is_shared else "rank", "at_most": WORTH_SHARING, **counts}

    def line(self) -> str:
        """Return everything in one line for people."""
        chosen = "all" if self.is_shared else "rank"
        return (
            f"data.share_titles auto is {chosen} (all where at most {100 * WORTH_SHARING:.0f}% are "
            f"left); {self.sharing.line()}"
        )


def measure_sharing(
    order: EpochOrder,
    clicks: ClickColumn,
    rule: ClickRule,
    micro_batch: int,
    global_batch: int,
    ranks: int,
    *,
    max_batches: int = _BATCHES,
) -> Sharing:
    """Count the titles of the first forward pass of some global batches.

    Args:
        order: the order of the clicks.
        clicks: the click log.
        rule: how to read a click.
        micro_batch: clicks of a forward pass on one rank.
        global_batch: clicks of a step, a multiple of ``ranks`` times ``micro_batch``.
        ranks: number of ranks.
        max_batches: largest number of global batches, taken evenly over the first epoch.
    """
    number = -(-order.num_units // global_batch)
    kept = min(max_batches, number)
    counts: list[list[float]] = []
    for start in global_batch * (np.arange(kept) * number // kept):
        units, epochs = order.span(int(start), int(start) + global_batch)
        units_RB = units.reshape(ranks, -1)[:, :micro_batch]
        epochs_RB = epochs.reshape(ranks, -1)[:, :micro_batch]
        batch = read_clicks(clicks, rule, units_RB.ravel(), epochs_RB.ravel())
        parts = [batch.part(rank * micro_batch, micro_batch) for rank in range(ranks)]
        distinct = [len(np.unique(part.named())) for part in parts]
        counts.append(
            [
                float(np.mean([len(np.unique(clicks.user(part.impression_B))) for part in parts])),
                float(np.mean([len(part.named()) for part in parts])),
                float(np.mean(distinct)),
                max(distinct),
                len(np.unique(batch.named())),
            ]
        )
    return Sharing(micro_batch, ranks, *(float(mean) for mean in np.mean(counts, axis=0)))


def sharing_table(
    numbers: Sequence[tuple[int, int]], mixing: Sequence[Mixing], sharing: Sequence[Sharing]
) -> str:
    """Format orders of one click log side by side, as text for a terminal.

    Args:
        numbers: window in shards, and block size in clicks of a user, of each order.
        mixing: how well each order mixes.
        sharing: the titles of each order.
    """
    ranks = sharing[0].ranks
    header = (
        f"{'window':>8}{'user block':>12}{'apart':>9}{'users':>9}{'titles':>10}{'distinct':>10}"
    )
    lines = [header + (f"{'over ranks':>12}" if ranks > 1 else "")]
    for (window, block), mixed, shared in zip(numbers, mixing, sharing, strict=True):
        line = (
            f"{window:>8,}{block:>12,}{mixed.apart_pct:>8.3g}%{shared.users:>9,.1f}"
            f"{shared.named:>10,.0f}{shared.distinct:>10,.0f}"
        )
        lines.append(line + (f"{100 * shared.kept_over_ranks:>11.0f}%" if ranks > 1 else ""))
    lines += [
        "",
        f"of {sharing[0].micro_batch:,} clicks at a time: the number of users, the titles that "
        "the clicks name, and the",
        "distinct titles, which are encoded",
    ]
    if ranks > 1:
        lines.append(
            f"over ranks: the share of titles that each of {ranks:,} ranks encodes with sharing, "
            "relative to the rank with the most without sharing"
        )
    return "\n".join(lines)
