"""Stretches of a click log in time, against doing the same date by date."""

from datetime import UTC, datetime

import numpy as np
import pytest
from helpers.sets import impression_samples, make_articles, make_clicks
from hypothesis import given
from hypothesis import strategies as st

from shards.clicks import ClickColumn
from shards.errors import DataError, UsageError
from shards.periods import Period, parse_period, rows_inside, units_outside
from trainer.config.clicks import ClickDataConfig
from trainer.tasks.finetune.left_out import clicks_left_out

DAYS = [None, "2019-11-12", "2019-11-13T08:00:20", "2019-11-14", "2019-11-15T08:00:14+00:00"]
NONE = np.empty(0, dtype=np.int64)


@pytest.fixture(scope="module")
def samples():
    made = impression_samples(60, 30, seed=2)
    for row in (7, 22):
        made[row]["time"] = "some day"
    return made


@pytest.fixture(scope="module")
def clicks(tmp_path_factory, samples) -> ClickColumn:
    folder = tmp_path_factory.mktemp("periods")
    return make_clicks(folder / "i", make_articles(folder / "a", 30), samples=samples)


def is_inside(time: str, since: str | None, until: str | None) -> bool:
    """The slow way: with Python's own dates."""
    if since is None and until is None:
        return True
    try:
        moment = datetime.fromisoformat(time).replace(tzinfo=UTC)
    except ValueError:
        return False
    bounds = [None if b is None else datetime.fromisoformat(b) for b in (since, until)]
    first, last = (b if b is None or b.tzinfo else b.replace(tzinfo=UTC) for b in bounds)
    return (first is None or moment >= first) and (last is None or moment < last)


@given(since=st.sampled_from(DAYS), until=st.sampled_from(DAYS))
def test_impressions_and_clicks_of_a_period(clicks, samples, since, until):
    if since is not None and until is not None and since >= until:
        with pytest.raises(UsageError, match=r"x\.since .* is not before x\.until"):
            parse_period(since, until, "x.")
        return
    period = parse_period(since, until, "x.")
    inside = [row for row, s in enumerate(samples) if is_inside(s["time"], since, until)]
    assert rows_inside(clicks, period).tolist() == inside
    outside = units_outside(clicks, period)
    rows, _ = clicks.click(np.arange(clicks.num_clicks))
    assert outside.units.tolist() == [u for u, row in enumerate(rows) if row not in inside]
    unknown = sum(row in (7, 22) for row in rows) if period.is_bounded else 0
    assert outside.unknown == unknown
    left_out = clicks_left_out(
        clicks, NONE, ClickDataConfig(clicks_since=since, clicks_until=until)
    )
    assert left_out.units.tolist() == outside.units.tolist()
    assert bool(left_out.notes) == period.is_bounded


def test_the_bound_itself_belongs_to_what_follows_and_midnight_is_utc():
    midnight = int(datetime(2019, 11, 14, tzinfo=UTC).timestamp())
    times = np.array([midnight - 1, midnight, -1])
    assert parse_period(None, "2019-11-14", "").contains(times).tolist() == [True, False, False]
    assert parse_period("2019-11-14", None, "").contains(times).tolist() == [False, True, False]
    assert parse_period("2019-11-14T01:00+01:00", None, "").since == midnight
    assert Period().contains(times).all()
    bounds = [(None, None), (1, None), (None, 1), (1, 2), (1, 3), (0, 2)]
    assert len({Period(*each).fingerprint for each in bounds}) == len(bounds)


def test_what_is_left_out_is_counted_with_its_reasons(clicks):
    (said,) = clicks_left_out(clicks, NONE, ClickDataConfig(clicks_until="2019-11-13")).notes
    total = clicks.num_clicks
    kept = total - len(units_outside(clicks, parse_period(None, "2019-11-13", "")).units)
    assert f"before 2019-11-13 00:00:00 (UTC): {kept} of {total}, {total - kept} are left" in said
    assert "because they have no time" in said
    broken = clicks_left_out(clicks, np.array([3]), ClickDataConfig(clicks_until="2019-11-13"))
    assert len(broken.notes) == 2 and len(broken.units) > total - kept
    assert set(clicks.units_with(np.array([3]))) <= set(broken.units.tolist())


def test_bounds_that_change_nothing_or_leave_nothing_say_when_the_log_runs(tmp_path):
    clicks = make_clicks(tmp_path / "i", make_articles(tmp_path / "a", 30), 40)
    (said,) = clicks_left_out(clicks, NONE, ClickDataConfig(clicks_until="2020-11-14")).notes
    assert "change nothing, the log runs from 2019-11-11 08:00:00 to 2019-11-15 08:00:39" in said
    with pytest.raises(DataError, match=r"data.clicks_since.*none of the .* clicks .* runs from"):
        clicks_left_out(clicks, NONE, ClickDataConfig(clicks_since="2020-11-14"))


@pytest.mark.parametrize("text", ["14 November", "2019-13-01", "", "2019"])
def test_bounds_that_are_no_dates_are_refused_by_name(text):
    with pytest.raises(UsageError, match=r"data\.clicks_until is .* 2019-11-14"):
        parse_period(None, text, "data.clicks_")
