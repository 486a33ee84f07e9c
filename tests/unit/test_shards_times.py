"""The time of an impression: what the note says, what the column holds, what a period takes."""

import json

import numpy as np
import pytest
from helpers.corpora import articles, write_json_lines

from shards.build import build_articles, build_impressions
from shards.click_cells import UNKNOWN_TIME, parse_time
from shards.clicks import ClickColumn
from shards.errors import UsageError
from shards.periods import Period, extent, parse_period

SECONDS = 1573808122
KNOWN = {
    "11/15/2019 8:55:22 AM": SECONDS,
    "2019-11-15T08:55:22": SECONDS,
    "2019-11-15 08:55:22": SECONDS,
    "2019-11-15T08:55:22Z": SECONDS,
    "2019-11-15T16:55:22+08:00": SECONDS,
    "2019-11-15T03:55:22.999999-0500": SECONDS,
    "20191115T085522Z": SECONDS,
    "2019-11-15": 1573776000,
    "1970-01-01T00:00:00": 0,
    "1969-12-31T23:59:58": -2,
    "1851-09-18": -3732825600,
    "9999-12-31T23:59:59Z": 253402300799,
}
UNKNOWN = [
    "", "yesterday", "2019-13-45T09:05:58", "25-11-2019T09:05:58", "25.11.2019T09:05:58",
    "25/11/2019 09:05:58", "13/45/2019 9:05:58 AM", "2019-11-15T25:00:00", "2019-11-15x08:55:22",
    "1573808122", "1701388800123", "1602061200123", "160206120012312", "1602061200123456",
    "-1573808122", "1.573808122e9", "1969-12-31T23:59:59",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00", "10000-01-01", "12019-11-15T00:00:00",
    "2019-11-15T08:55:22 UTC", "2019-11-15T08:55:22+25:00", "2019-W46-5",
    "\uff12\uff10\uff11\uff19-11-15",
]  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("times")
    source = write_json_lines(folder / "a.jsonl", articles(5))
    made = build_articles([source], folder / "articles").shard_set
    lines = [f"{n}\tU1\t{time}\tN1\tN3-1 N4-0" for n, time in enumerate([*KNOWN, *UNKNOWN])]
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    return build_impressions([folder / "behaviors.tsv"], made, folder / "log").shard_set


def test_note_and_column_judge_alike(log):
    times = ClickColumn.open(log).time(np.arange(log.num_rows))
    assert times.tolist() == [*KNOWN.values(), *[UNKNOWN_TIME] * len(UNKNOWN)]
    notes = [json.loads(line) for line in (log.path / "noted.jsonl").read_text().splitlines()]
    noted = [note["line"] - 1 for note in notes if note["what"] == "unknown time"]
    assert noted == np.flatnonzero(times == UNKNOWN_TIME).tolist()
    assert log.manifest.counts["unknown_time"] == len(UNKNOWN)


def test_no_period_holds_an_unknown_time(log):
    clicks = ClickColumn.open(log)
    times = clicks.time(np.arange(log.num_rows))
    for period in (Period(since=-99), Period(until=2**62), parse_period(None, "2019-11-14", "x")):
        assert not period.contains(times)[len(KNOWN) :].any()
    assert extent(clicks) == (
        f"the log runs from 1851-09-18 00:00:00 to 9999-12-31 23:59:59, and {len(UNKNOWN)} of its"
        " impressions have no time"
    )


@pytest.mark.parametrize("text", ["1602061200123", "2019-02-30", "tomorrow"])
def test_bounds_are_judged_like_the_log(text):
    assert parse_time(text) == UNKNOWN_TIME
    with pytest.raises(UsageError, match="expected a date such as 2019-11-14"):
        parse_period(text, None, "data.clicks_")
