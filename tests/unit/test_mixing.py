"""Shuffle quality and locality of an order against a slow count."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.mixing import measure_mixing
from shards.order import EpochOrder

counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda c: sum(c) > 1)


@settings(deadline=None, max_examples=60)
@given(counts=counts_lists, window=st.integers(1, 8), batch=st.integers(1, 9))
def test_the_numbers_are_those_of_a_slow_count(counts, window, batch):
    order = EpochOrder(counts, "f", 3, window)
    n = order.num_units
    found = measure_mixing(order, batch, [1024 * c for c in counts])
    place = {int(unit): at for at, unit in enumerate(order.rows(0, 0, n))}
    travel = sum(abs(place[i] - i) for i in range(n)) / n
    assert found.travel_pct == pytest.approx(100 * travel / ((n * n - 1) / (3 * n)))
    shard_of = np.repeat(np.arange(len(counts)), counts)
    window_of = order.windows_of(0, np.arange(n))
    pairs = [i for i in range(n - 1) if window_of[i] == window_of[i + 1]]
    if pairs:
        apart = sum(abs(place[i] - place[i + 1]) for i in pairs) / len(pairs)
        assert found.apart_pct == pytest.approx(100 * apart / ((n + 1) / 3))
    begins = sorted({int(order.window_starts(0)[w]) for w in set(window_of.tolist())})
    read = []
    for begin in begins:  # the first batch that begins in the window or after it
        first = next(at for at in range(begin, begin + batch) if at % batch == 0)
        rows, _ = order.span(first, first + batch)
        read.append(len(set(shard_of[rows].tolist())))
    assert found.batch_shards == pytest.approx(sum(read) / len(read))
    assert found.window_units * found.windows == pytest.approx(n)
    assert found.measured_windows == found.windows
    assert json.loads(json.dumps(found.to_dict()))["units"] == n


def test_window_decides_how_far_neighbours_come_apart_and_what_must_be_at_hand():
    found = {
        window: measure_mixing(EpochOrder([500] * 40, "f", 0, window), 64, [2**20] * 40)
        for window in (1, 4, 40)
    }
    assert all(85 < found[w].travel_pct < 115 for w in (1, 4, 40))
    assert found[1].apart_pct == pytest.approx(100 / 40, rel=0.05)
    assert found[4].apart_pct == pytest.approx(100 / 10, rel=0.05)
    assert found[40].apart_pct == pytest.approx(100, rel=0.05)
    assert [found[w].window_mib for w in (1, 4, 40)] == [1, 4, 40]
    assert 1 <= found[1].batch_shards < 1.3
    assert 4 <= found[4].batch_shards < 4.5
    assert found[40].batch_shards > 25
    assert "windows of 4 of 40 shards (2,000 of 20,000 units, 4.0 MiB)" in found[4].line()


def test_part_of_a_large_order_says_the_same_and_says_that_it_is_a_part():
    order = EpochOrder([500] * 100, "f", 0, 2)
    whole, part = measure_mixing(order, 32), measure_mixing(order, 32, max_units=10_000)
    assert (whole.measured_windows, part.measured_windows) == (50, 10)
    assert part.apart_pct == pytest.approx(whole.apart_pct, rel=0.05)
    assert part.travel_pct == pytest.approx(whole.travel_pct, rel=0.3)
    assert "(measured in 10 of 50 windows)" in part.line()
    assert "measured in" not in whole.line()


def test_a_single_unit_has_nothing_to_mix():
    found = measure_mixing(EpochOrder([1], "f", 0), 4)
    assert (found.travel_pct, found.apart_pct, found.batch_shards) == (100, 100, 1)
