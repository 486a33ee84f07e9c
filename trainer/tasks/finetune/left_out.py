"""Clicks that a run leaves out, and the lines about them.

This module does not import torch.
"""

import numpy as np

from shards.clicks import ClickColumn
from shards.periods import Period, check_any, extent, parse_period, units_outside
from trainer.config.clicks import ClickDataConfig
from trainer.tasks.left_out import LeftOut, damaged

CLICKS = "data.clicks_"
"""Prefix of the settings of the training period."""


def training_period(data: ClickDataConfig) -> Period:
    """Return the period of the training clicks.

    Raises:
        UsageError: See :func:`shards.periods.parse_period`.
    """
    return parse_period(data.clicks_since, data.clicks_until, CLICKS)


def clicks_left_out(
    clicks: ClickColumn, skipped_rows: np.ndarray, data: ClickDataConfig
) -> LeftOut:
    """Find training clicks outside the run's period, or with a damaged article.

    Args:
        clicks: The click log.
        skipped_rows: Articles without tokens, int64[k].
        data: Section with ``clicks_since`` and ``clicks_until``.

    Raises:
        DataError: The period does not contain any click.
    """
    broken = damaged(clicks.units_with(skipped_rows))
    period = training_period(data)
    if not period.is_bounded or not clicks.num_clicks:
        return broken
    outside = units_outside(clicks, period)
    num_inside = clicks.num_clicks - len(outside.units)
    check_any(num_inside, clicks, period, CLICKS, f"{clicks.num_clicks:,} clicks")
    said = (
        f"training on the clicks {period} (UTC): {num_inside:,} of {clicks.num_clicks:,}, "
        f"{len(outside.units):,} are left out"
    )
    if outside.unknown:
        said += f", {outside.unknown:,} of them because they have no time"
    if not len(outside.units):
        said += f": the bounds change nothing, {extent(clicks)}"
    # NumPy's set operations take seconds on a day of MIND's clicks; this takes milliseconds.
    is_out = np.zeros(clicks.num_clicks, dtype=bool)
    is_out[outside.units] = is_out[broken.units] = True
    return LeftOut(np.flatnonzero(is_out), [said, *broken.notes])
