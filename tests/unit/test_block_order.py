"""Orders in blocks of one group: every unit once, blocks whole, a pure function of few things."""

from itertools import groupby, pairwise

import numpy as np
import pytest
from helpers.sets import make_articles, make_impressions
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.block_order import BlockOrder
from shards.click_batch import click_order
from shards.clicks import ClickColumn
from shards.errors import DataError
from shards.order import EpochOrder
from shards.stream import Stream

counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda c: sum(c) > 0)


def groups_of(seed, number):
    """Groups that a seed gives to units, whatever else is asked for at the same time."""
    return lambda units: np.array(
        [np.random.default_rng([seed, int(unit)]).integers(number) for unit in units],
        dtype=np.int64,
    )


def block_order(counts, window=2, block=3, groups=None, seed=3, skipped=None, fingerprint="f"):
    groups = groups or groups_of(0, 5)
    return BlockOrder(counts, fingerprint, seed, window, skipped, groups=groups, block_units=block)


@settings(deadline=None, max_examples=60)
@given(
    counts=counts_lists,
    window=st.integers(1, 5),
    block=st.integers(1, 6),
    number=st.integers(1, 9),
    data=st.data(),
)
def test_every_unit_once_an_epoch_in_as_few_blocks_as_may_be(counts, window, block, number, data):
    drawn = data.draw(st.sets(st.integers(0, sum(counts) - 1), max_size=3))
    skipped = np.array(sorted(drawn), dtype=np.int64)
    if len(skipped) == sum(counts):
        return
    groups = groups_of(1, number)
    order = block_order(counts, window, block, groups, skipped=skipped)
    kept = np.setdiff1d(np.arange(sum(counts)), skipped)
    for epoch in (0, 3):
        rows = order.rows(epoch, 0, order.num_units)
        assert sorted(rows.tolist()) == kept.tolist()
        for first, last in pairwise(order.window_starts(epoch).tolist()):
            units = rows[first:last]
            runs = [list(run) for _, run in groupby(units, key=lambda u: groups([u])[0])]
            numbers = groups(units)
            for group in np.unique(numbers):
                size = int((numbers == group).sum())
                of_group = [len(run) for run in runs if groups(run[:1])[0] == group]
                # Blocks of one group that happen to follow each other look like one.
                assert len(of_group) <= -(-size // block)
                if size <= block:
                    assert of_group == [size]


def test_blocks_are_even_runs_of_neighbours():
    order = block_order([40], window=1, block=8, groups=lambda units: units * 0)
    rows = order.rows(0, 0, 40)
    steps = np.diff(rows)
    # One group of 40: five blocks of 8 neighbours (one of them over the end of the set).
    assert sorted(set((steps[np.arange(39) % 8 != 7] % 40).tolist())) == [1]
    order = block_order([10], window=1, block=4, groups=lambda units: units * 0)
    rows = order.rows(0, 0, 10).tolist()
    breaks = [i + 1 for i in range(9) if (rows[i + 1] - rows[i]) % 10 != 1]
    assert set(np.diff([0, *breaks, 10]).tolist()) <= {3, 4, 6, 7, 10}


@pytest.mark.parametrize(("size", "block", "even"), [(12, 5, 4), (10, 5, 5), (7, 8, 7), (6, 1, 1)])
def test_no_block_is_larger_than_asked_for(size, block, even):
    order = block_order([50 * size], 1, block, lambda units: units // size)
    runs = [len(list(run)) for _, run in groupby(order.rows(0, 0, 50 * size) // size)]
    # Blocks of one group that happen to follow each other make runs of several.
    assert all(run % even == 0 for run in runs)
    assert runs.count(even) > 0.8 * len(runs)


def test_a_large_group_is_cut_elsewhere_in_every_epoch():
    order = block_order([32], window=1, block=8, groups=lambda units: units * 0)
    firsts = {
        min(order.rows(epoch, at, at + 8).tolist()) % 8 for epoch in range(9) for at in (0, 8)
    }
    assert len(firsts) > 3


@pytest.mark.parametrize("epoch", range(4))
def test_blocks_are_neighbours_in_the_set_though_a_window_has_its_shards_in_any_order(epoch):
    order = block_order([10] * 6, window=6, block=6, groups=lambda units: units * 0)
    blocks = order.rows(epoch, 0, 60).reshape(10, 6)
    assert (np.diff(blocks) % 60 == 1).all()


def test_any_range_is_that_part_of_the_whole():
    whole = block_order([9, 0, 7, 12, 5]).rows(2, 0, 33)
    order = block_order([9, 0, 7, 12, 5])
    for start, stop in [(0, 1), (5, 20), (13, 33), (33, 33)]:
        np.testing.assert_array_equal(order.rows(2, start, stop), whole[start:stop])


def test_the_order_depends_on_fingerprint_seed_epoch_window_and_block():
    def rows(epoch=0, **changes):
        return block_order([20] * 6, **changes).rows(epoch, 0, 120).tolist()

    base = rows()
    changes = [{"fingerprint": "g"}, {"seed": 1}, {"epoch": 1}, {"window": 3}, {"block": 4}]
    assert all(rows(**change) != base for change in changes)
    assert rows() == base


def test_the_order_itself_never_changes():
    """Other numbers here would break every run that is resumed after an update."""
    order = block_order([5, 0, 4, 3], 2, 2, lambda units: units % 3, 42, fingerprint="fp")
    assert order.rows(1, 0, 12).tolist() == [9, 11, 10, 1, 4, 0, 5, 8, 2, 3, 6, 7]


@pytest.mark.parametrize("other", [EpochOrder([20] * 3, "f", 3, 2), block_order([20] * 3, block=4)])
def test_a_position_of_another_order_is_refused(other):
    with pytest.raises(DataError, match="fingerprint is"):
        block_order([20] * 3).total_at(other.position_at(7))


def test_blocks_below_one_are_refused():
    with pytest.raises(ValueError, match="block_units is 0"):
        block_order([4], block=0)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks")
    return ClickColumn.open(make_impressions(folder / "i", make_articles(folder / "a"), 200))


def test_clicks_of_a_user_come_together_and_nothing_depends_on_ranks(clicks):
    order = click_order(clicks, 5, window_shards=99, user_block=4)
    units, _ = order.span(0, clicks.num_clicks)
    assert sorted(units.tolist()) == list(range(clicks.num_clicks))

    def runs(units):
        return 1 + int((np.diff(clicks.user(clicks.click(units)[0])) != 0).sum())

    plain, _ = click_order(clicks, 5, 99).span(0, clicks.num_clicks)
    users = clicks.user(clicks.click(units)[0])
    blocks = sum(-(-n // 4) for n in np.bincount(users))
    assert runs(units) <= blocks < 0.6 * runs(plain)
    for world_size in (2, 3):
        streams = [Stream(order, 12, rank, world_size) for rank in range(world_size)]
        batches = [[next(stream) for stream in streams] for _ in range(4)]
        found = np.concatenate([part.rows for batch in batches for part in batch])
        np.testing.assert_array_equal(found, units[:48])


def test_blocks_of_one_are_the_plain_order(clicks):
    plain = EpochOrder(clicks.clicks_per_shard, clicks.reader.shard_set.fingerprint, 5, 3)
    order = click_order(clicks, 5, 3, user_block=1)
    assert order.position_at(9) == plain.position_at(9)
    np.testing.assert_array_equal(order.rows(1, 0, 50), plain.rows(1, 0, 50))
