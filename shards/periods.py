"""Select a period of a click log: from one moment (inclusive) to another (exclusive).

MIND's times have no zone. Times without a zone are taken as UTC, both in the log and in the bounds,
so ``2019-11-14`` is the beginning of that day as the log itself counts days.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from shards.click_cells import UNKNOWN_TIME
from shards.clicks import ClickColumn, parse_time
from shards.errors import DataError, UsageError


@dataclass(frozen=True)
class Period:
    """Impressions from ``since`` on and before ``until``; impressions without a time are outside.

    Attributes:
        since: seconds since 1970 UTC, None for the beginning of the log.
        until: seconds since 1970 UTC, exclusive; None for the end of the log.
    """

    since: int | None = None
    until: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether the period can leave out anything."""
        return self.since is not None or self.until is not None

    @property
    def fingerprint(self) -> str:
        """A hash of both bounds."""
        return hashlib.sha256(f"{self.since} {self.until}".encode()).hexdigest()

    def contains(self, times: np.ndarray) -> np.ndarray:
        """Tell which times lie in the period, bool[n].

        Args:
            times: int64[n], seconds since 1970 UTC, -1 if unknown.
        """
        times = np.asarray(times)
        inside = np.ones(len(times), dtype=bool)
        if self.is_bounded:
            inside &= times != UNKNOWN_TIME
        if self.since is not None:
            inside &= times >= self.since
        if self.until is not None:
            inside &= times < self.until
        return inside

    def __str__(self) -> str:
        """Return the period in words."""
        parts = []
        if self.since is not None:
            parts.append(f"from {moment(self.since)}")
        if self.until is not None:
            parts.append(f"before {moment(self.until)}")
        return " and ".join(parts) or "the whole log"


def parse_period(since: str | None, until: str | None, section: str) -> Period:
    """Parse a period from two bounds as people write them.

    Args:
        since: An ISO 8601 date or time (UTC unless it names a zone), or None.
        until: The other bound.
        section: Prefix of the settings ``since`` and ``until`` in messages, such as
            ``data.clicks_``.

    Raises:
        UsageError: A bound is neither a date nor a time, or the period is empty.
    """
    seconds: dict[str, int | None] = {"since": None, "until": None}
    for name, text in (("since", since), ("until", until)):
        if text is None:
            continue
        seconds[name] = parse_time(text)
        if seconds[name] == UNKNOWN_TIME:
            raise UsageError(
                f"{section}{name} is {text!r}; expected a date such as 2019-11-14, or a time such "
                "as 2019-11-14T06:00:00 (UTC, like the log's times)"
            )
    period = Period(**seconds)
    if period.since is not None and period.until is not None and period.since >= period.until:
        raise UsageError(
            f"{section}since {since} is not before {section}until {until}: nothing lies between"
        )
    return period


def moment(seconds: int) -> str:
    """Format a time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Outside:
    """The part of a click log outside a period.

    Attributes:
        units: training units outside the period, int64[u] ascending.
        unknown: how many of these units belong to impressions without a time.
    """

    units: np.ndarray
    unknown: int


def units_outside(clicks: ClickColumn, period: Period) -> Outside:
    """Find the training units of a click log whose impression is outside a period."""
    found = [np.empty(0, dtype=np.int64)]
    unknown = 0
    start = 0
    for shard, count in enumerate(clicks.clicks_per_shard):
        if count and period.is_bounded:
            cell = clicks.reader.cell(shard)
            times = np.repeat(cell["time"], np.diff(cell["units.offsets"]))
            found.append(np.flatnonzero(~period.contains(times)) + start)
            unknown += int((times == UNKNOWN_TIME).sum())
        start += count
    return Outside(np.concatenate(found), unknown)


def rows_inside(clicks: ClickColumn, period: Period) -> np.ndarray:
    """Find the impressions of a click log that are in a period, int64[n] ascending."""
    rows = np.arange(clicks.num_impressions, dtype=np.int64)
    return rows[period.contains(clicks.time(rows))] if period.is_bounded else rows


def count_unknown(clicks: ClickColumn) -> int:
    """Count the impressions of a click log without a time."""
    return int((_times(clicks) == UNKNOWN_TIME).sum())


def _times(clicks: ClickColumn) -> np.ndarray:
    return clicks.time(np.arange(clicks.num_impressions, dtype=np.int64))


def extent(clicks: ClickColumn) -> str:
    """Describe in words the first and last time of a click log."""
    times = _times(clicks)
    known = times[times != UNKNOWN_TIME]
    if not len(known):
        return "the log has no times"
    said = f"the log runs from {moment(int(known.min()))} to {moment(int(known.max()))}"
    missing = len(times) - len(known)
    return f"{said}, and {missing:,} of its impressions have no time" if missing else said


def check_any(count: int, clicks: ClickColumn, period: Period, section: str, what: str) -> None:
    """Refuse an empty period.

    Args:
        count: Number of items of the log in the period.
        clicks: The log.
        period: The period.
        section: See :func:`parse_period`.
        what: The counted items, in the plural.

    Raises:
        DataError: The period is empty; the message has the log's first and last time.
    """
    if not count:
        raise DataError(
            f"{section}since and {section}until ({period}): none of the {what} of "
            f"{clicks.reader.shard_set.path} lies in it; {extent(clicks)}"
        )
