"""A stretch of a click log in time: from one moment on, and before another.

MIND's times have no zone; like every time without one they are taken as UTC, in the log as in the
bounds, so that ``2019-11-14`` is the beginning of that day as the log itself counts days.
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
    """Impressions from ``since`` on and before ``until``; an impression without a time is in none.

    Attributes:
        since: seconds since 1970 UTC, None for the beginning of the log.
        until: seconds since 1970 UTC, not within the period any more; None for the end of the log.
    """

    since: int | None = None
    until: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether anything can be left out."""
        return self.since is not None or self.until is not None

    @property
    def fingerprint(self) -> str:
        """A hash of both bounds."""
        return hashlib.sha256(f"{self.since} {self.until}".encode()).hexdigest()

    def contains(self, times: np.ndarray) -> np.ndarray:
        """Which times lie in the period, bool[n].

        Args:
            times: int64[n], seconds since 1970 UTC, -1 where unknown.
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
        """The period in words."""
        parts = []
        if self.since is not None:
            parts.append(f"from {moment(self.since)}")
        if self.until is not None:
            parts.append(f"before {moment(self.until)}")
        return " and ".join(parts) or "the whole log"


def parse_period(since: str | None, until: str | None, section: str) -> Period:
    """The period between two bounds as people write them.

    Args:
        since: An ISO 8601 date or time (UTC unless it names a zone), or None.
        until: Another.
        section: What the settings ``since`` and ``until`` are called up to these words, for
            messages, such as ``data.clicks_``.

    Raises:
        UsageError: A bound is no date or time, or the period is empty.
    """
    seconds: dict[str, int | None] = {"since": None, "until": None}
    for name, text in (("since", since), ("until", until)):
        if text is None:
            continue
        seconds[name] = parse_time(text)
        if seconds[name] == UNKNOWN_TIME:
            raise UsageError(
                f"{section}{name} is {text!r}; expected a date such as 2019-11-14, or a time such "
                "as 2019-11-14T06:00:00 (UTC, as the log's times are taken)"
            )
    period = Period(**seconds)
    if period.since is not None and period.until is not None and period.since >= period.until:
        raise UsageError(
            f"{section}since {since} is not before {section}until {until}: nothing lies between"
        )
    return period


def moment(seconds: int) -> str:
    """A time as people write it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Outside:
    """What of a click log is not in a period.

    Attributes:
        units: training units that are left out, int64[u] ascending.
        unknown: how many of them belong to impressions without a time.
    """

    units: np.ndarray
    unknown: int


def units_outside(clicks: ClickColumn, period: Period) -> Outside:
    """The training units of a click log whose impression is not in a period."""
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
    """The impressions of a click log that are in a period, int64[n] ascending."""
    rows = np.arange(clicks.num_impressions, dtype=np.int64)
    return rows[period.contains(clicks.time(rows))] if period.is_bounded else rows


def count_unknown(clicks: ClickColumn) -> int:
    """How many impressions of a click log have no time."""
    return int((_times(clicks) == UNKNOWN_TIME).sum())


def _times(clicks: ClickColumn) -> np.ndarray:
    return clicks.time(np.arange(clicks.num_impressions, dtype=np.int64))


def extent(clicks: ClickColumn) -> str:
    """From when to when a click log runs, in words."""
    times = _times(clicks)
    known = times[times != UNKNOWN_TIME]
    if not len(known):
        return "the log has no times"
    said = f"the log runs from {moment(int(known.min()))} to {moment(int(known.max()))}"
    missing = len(times) - len(known)
    return f"{said}, and {missing:,} of its impressions have no time" if missing else said


def check_any(count: int, clicks: ClickColumn, period: Period, section: str, what: str) -> None:
    """Refuse a period that holds nothing.

    Args:
        count: How much of the log lies in the period.
        clicks: The log.
        period: The period.
        section: See :func:`parse_period`.
        what: What was counted, in the plural.

    Raises:
        DataError: Nothing does; the message says when the log runs.
    """
    if not count:
        raise DataError(
            f"{section}since and {section}until ({period}): none of the {what} of "
            f"{clicks.reader.shard_set.path} lies in it; {extent(clicks)}"
        )
