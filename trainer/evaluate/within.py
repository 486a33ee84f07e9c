"""Metrics of the impressions of a period alone."""

from __future__ import annotations

import numpy as np

from shards.clicks import ClickColumn
from shards.periods import check_any, parse_period, rows_inside
from trainer.evaluate.metrics import Metrics


def within(
    metrics: Metrics, clicks: ClickColumn, since: str | None, until: str | None
) -> tuple[Metrics, int]:
    """Leave the impressions out that are not in a period, as if they had not been measured.

    Args:
        metrics: Of all impressions of the log, in its order.
        clicks: The log.
        since: First date or time of the period (UTC), None for the beginning of the log.
        until: The first one after it, None for the end of the log.

    Returns:
        The metrics, with NaN for every impression outside, and how many these are.

    Raises:
        UsageError: A bound is no date or time, or the period is empty.
        DataError: No impression lies in it.
    """
    period = parse_period(since, until, "--")
    if not period.is_bounded:
        return metrics, 0
    num = clicks.num_impressions
    outside_n = np.ones(num, dtype=bool)
    outside_n[rows_inside(clicks, period)] = False
    num_outside = int(outside_n.sum())
    check_any(num - num_outside, clicks, period, "--", f"{num:,} impressions")
    kept = {name: np.where(outside_n, np.nan, array) for name, array in metrics.arrays().items()}
    return Metrics.of(kept), num_outside
