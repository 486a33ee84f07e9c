"""Progress in logs: few lines, with rate and time left."""

import io

import pytest

from shards.progress import Progress, format_duration, progress


def test_a_log_gets_lines_at_intervals_with_rate_and_time_left(monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr("shards.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Progress(1000, "encode", "articles", stream=stream) as shown:
        for _ in range(4):
            shown.update(155)
    assert stream.getvalue().splitlines() == [
        "encode: 310 articles of 1,000 articles (31%), 10 articles/s, 1 min 09 s left",
        "encode: 620 articles of 1,000 articles (62%), 10 articles/s, 38 s left",
    ]


def test_bytes_and_unknown_totals():
    shown = Progress(None, "build", "B", stream=io.StringIO())
    shown.update(5_000_000)
    assert shown.line(2.0) == "build: 5.0 MB, 2.5 MB/s"
    assert shown.line(0.0) == "build: 5.0 MB, 0.0 MB/s"


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(10, "read", "shards", stream=stream) as shown:
        shown.update(10)
    assert "read" in stream.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_was_done_before_does_not_count_for_the_rate(terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    with Progress(10_000_000, "build", "B", stream=Stream()) as shown:
        shown.skip(6_000_000)
        shown.update(1_000_000)
        assert shown.line(2.0) == "build: 1.0 MB of 4.0 MB (25%), 0.5 MB/s, 6 s left"


def test_items_pass_through(capsys):
    assert list(progress(iter("abc"), None, "x", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min"), (7620, "2 h 07 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
