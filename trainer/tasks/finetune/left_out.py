"""Which clicks never come, and what is said about them. No torch."""

import numpy as np

from shards.clicks import ClickColumn
from shards.periods import Period, check_any, extent, parse_period, units_outside
from trainer.config.clicks import ClickDataConfig
from trainer.tasks.left_out import LeftOut, damaged

CLICKS = "data.clicks_"
"""How the settings of the training period begin."""


def training_period(data: ClickDataConfig) -> Period:
    """The period whose clicks are trained on.

    Raises:
        UsageError: See :func:`shards.periods.parse_period`.
    """
    return parse_period(data.clicks_since, data.clicks_until, CLICKS)


def clicks_left_out(
    clicks: ClickColumn, skipped_rows: np.ndarray, data: ClickDataConfig
) -> LeftOut:
    """Training clicks that are outside the period of the run, or touch a damaged article.

    Args:
        clicks: The click log.
        skipped_rows: Articles without tokens, int64[k].
        data: Its ``clicks_since`` and ``clicks_until``.

    Raises:
        DataError: No click lies in the period.
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
        said += f", {outside.unknown:,} of them for want of a time"
    if not len(outside.units):
        said += f": the bounds change nothing, {extent(clicks)}"
    # NumPy's set operations take seconds over a day of MIND's clicks; this takes milliseconds.
    is_out = np.zeros(clicks.num_clicks, dtype=bool)
    is_out[outside.units] = is_out[broken.units] = True
    return LeftOut(np.flatnonzero(is_out), [said, *broken.notes])
