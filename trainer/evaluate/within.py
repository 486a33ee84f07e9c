"""Metrics of the impressions of a period only."""

from __future__ import annotations

import numpy as np

from shards.clicks import ClickColumn
from shards.periods import check_any, parse_period, rows_inside
from trainer.evaluate.metrics import Metrics


def outside_period(clicks: ClickColumn, since: str | None, until: str | None) -> np.ndarray:
    """Return which impressions of a log are outside a period, bool[n].

    Args:
        clicks: The log.
        since: Start of the period (date or time, UTC); None for the beginning of the log.
        until: End of the period (exclusive); None for the end of the log.

    Raises:
        UsageError: A bound is not a date or time, or the period is empty.
        DataError: The period does not contain any impression.
    """
    period, num = parse_period(since, until, "--"), clicks.num_impressions
    inside = rows_inside(clicks, period)
    if period.is_bounded:
        check_any(len(inside), clicks, period, "--", f"{num:,} impressions")
    outside_n = np.ones(num, dtype=bool)
    outside_n[inside] = False
    return outside_n


def leave_out(metrics: Metrics, outside_n: np.ndarray) -> Metrics:
    """Set the metrics of some impressions to NaN, as if they had not been measured."""
    kept = {name: np.where(outside_n, np.nan, array) for name, array in metrics.arrays().items()}
    return Metrics.of(kept)
