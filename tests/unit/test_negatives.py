"""Draws keyed by sample: distinct, uniform, and the same whatever the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shards.errors import DataError
from shards.negatives import (
    Negatives,
    check_window_negatives,
    draw_distinct,
    draw_negatives,
    draw_window_negatives,
    sample_keys,
)
from shards.order import EpochOrder


@settings(deadline=None, max_examples=60)
@given(data=st.data(), num_rows=st.integers(2, 40), seed=st.integers(-3, 2**65))
def test_distinct_and_never_the_own_row(data, num_rows, seed):
    count = data.draw(st.integers(0, num_rows - 1))
    rows = np.arange(num_rows)
    drawn = draw_negatives(seed, rows, rows % 3, num_rows, count)
    assert drawn.shape == (num_rows, count)
    for row, others in zip(rows, drawn.tolist(), strict=True):
        assert len(set(others)) == count
        assert row not in others
        assert all(0 <= other < num_rows for other in others)


def test_independent_of_the_batch_it_is_in():
    rows = np.arange(200)
    epochs = rows % 2
    whole = draw_negatives(5, rows, epochs, 1000, 9)
    chosen = np.array([150, 3, 77, 3])
    np.testing.assert_array_equal(draw_negatives(5, chosen, epochs[chosen], 1000, 9), whole[chosen])
    halves = [draw_negatives(5, rows[s], epochs[s], 1000, 9) for s in (slice(90), slice(90, None))]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


def test_keyed_by_seed_epoch_and_row():
    rows, zeros = np.zeros(1, dtype=np.int64) + 4, np.zeros(1, dtype=np.int64)
    base = draw_negatives(1, rows, zeros, 10**6, 9)
    assert (draw_negatives(1, rows, zeros, 10**6, 9) == base).all()
    assert (draw_negatives(2, rows, zeros, 10**6, 9) != base).any()
    assert (draw_negatives(1, rows, zeros + 1, 10**6, 9) != base).any()
    assert (draw_negatives(1, rows + 1, zeros, 10**6, 9) != base).any()


def test_the_draws_themselves_never_change():
    """Other numbers here would break every run that is resumed after an update."""
    rows = np.array([0, 5, 11])
    drawn = draw_negatives(7, rows, np.array([0, 1, 2]), 12, 3)
    assert drawn.tolist() == [[5, 8, 3], [2, 11, 9], [5, 7, 6]]


@pytest.mark.parametrize("place", [0, 4, 8])
def test_uniform_in_every_place(place):
    num_rows, n = 20, 20_000
    rows = np.full(n, 6)
    drawn = draw_negatives(0, rows, np.arange(n), num_rows, 9)[:, place]
    found = np.bincount(drawn, minlength=num_rows)
    assert found[6] == 0
    assert stats.chisquare(np.delete(found, 6)).pvalue > 1e-4


def test_pairs_are_uniform_too():
    n = 30_000
    drawn = draw_negatives(3, np.zeros(n, dtype=np.int64), np.arange(n), 6, 2)
    pairs = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36).reshape(6, 6)[1:, 1:]
    expected_pairs = pairs[~np.eye(5, dtype=bool)]
    assert np.trace(pairs) == 0
    assert stats.chisquare(expected_pairs).pvalue > 1e-4


def test_just_enough_articles():
    drawn = draw_negatives(0, np.arange(10), np.zeros(10, dtype=np.int64), 10, 9)
    for row in range(10):
        assert sorted(drawn[row].tolist()) == [r for r in range(10) if r != row]


def test_too_few_articles_is_an_error_that_says_so():
    with pytest.raises(DataError, match=r"at least 10 articles, the set has 9"):
        draw_negatives(0, np.arange(9), np.zeros(9, dtype=np.int64), 9, 9)


def test_row_outside_of_the_set_is_an_error():
    with pytest.raises(ValueError, match="the set has 10"):
        draw_negatives(0, np.array([10]), np.array([0]), 10, 3)


def test_other_row_can_be_excluded():
    rows = np.arange(300)
    drawn = draw_negatives(0, rows, rows * 0, 300, 9, exclude=rows * 0 + 17)
    assert not (drawn == 17).any()
    assert len({tuple(d) for d in drawn.tolist()}) > 290


def test_exhausted_values_come_again_in_their_order():
    keys = sample_keys(1, 0, np.zeros(3, dtype=np.int64), np.arange(3))
    drawn = draw_distinct(keys, np.array([1, 3, 50]), 7)
    assert drawn[0].tolist() == [0] * 7
    assert sorted(drawn[1, :3].tolist()) == [0, 1, 2]
    assert drawn[1, 3:].tolist() == [*drawn[1, :3].tolist(), drawn[1, 0]]
    assert len(set(drawn[2].tolist())) == 7


def test_empty_batch():
    empty = np.empty(0, dtype=np.int64)
    assert draw_negatives(0, empty, empty, 20, 9).shape == (0, 9)


def window_order(counts, window=2, seed=1):
    return EpochOrder(counts, "f", seed, window)


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=7),
    window=st.integers(1, 4),
    data=st.data(),
)
def test_window_negatives_are_distinct_others_of_the_samples_own_window(counts, window, data):
    order = window_order(counts, window)
    count = data.draw(st.integers(0, max(order.smallest_window() - 1, 0)))
    check_window_negatives(order, count)
    rows = np.tile(np.arange(order.num_units), 2)
    epochs = np.repeat([0, 3], order.num_units)
    drawn = draw_window_negatives(order, 7, rows, epochs, count)
    assert drawn.shape == (len(rows), count)
    for row, epoch, others in zip(rows, epochs, drawn, strict=True):
        own = order.windows_of(int(epoch), np.array([row]))
        assert (order.windows_of(int(epoch), others) == own).all()
        assert len({row, *others.tolist()}) == count + 1


def test_window_negatives_do_not_depend_on_the_batch():
    order = window_order([20] * 10, 3)
    rows, epochs = np.arange(200), np.arange(200) % 3
    whole = draw_window_negatives(order, 5, rows, epochs, 9)
    chosen = np.random.default_rng(0).permutation(200)[:31]
    part = draw_window_negatives(window_order([20] * 10, 3), 5, rows[chosen], epochs[chosen], 9)
    np.testing.assert_array_equal(part, whole[chosen])
    assert (draw_window_negatives(order, 6, rows, epochs, 9) != whole).any()


def test_window_negatives_are_uniform_over_the_window():
    order = window_order([5, 6, 7], 3)
    n = 20_000
    drawn = draw_window_negatives(order, 0, np.full(n, 6), np.arange(n), 4)
    for place in range(4):
        found = np.bincount(drawn[:, place], minlength=18)
        assert found[6] == 0
        assert stats.chisquare(np.delete(found, 6)).pvalue > 1e-4


def test_the_window_draws_themselves_never_change():
    """Other numbers here would break every run that is resumed after an update."""
    order = window_order([4, 5, 3, 6], 2)
    drawn = draw_window_negatives(order, 7, np.array([0, 5, 17]), np.array([0, 1, 2]), 3)
    assert drawn.tolist() == [[4, 6, 2], [10, 4, 6], [4, 7, 5]]


def test_smallest_window_is_the_smallest_of_many_epochs():
    for counts, window in (([5, 1, 4, 2, 8], 2), ([3, 9], 4), ([2, 3, 4, 5], 2)):
        order = window_order(counts, window)
        sizes = [np.diff(order.window_starts(epoch)).min() for epoch in range(200)]
        assert order.smallest_window() == min(sizes)


def test_windows_too_small_for_the_negatives_are_refused_before_training():
    with pytest.raises(DataError, match=r"at least 10 articles, .*window_shards 2 of 3 shards one"):
        check_window_negatives(window_order([50, 50, 9]), 9)
    check_window_negatives(window_order([50, 50, 10]), 9)


def test_damaged_articles_are_never_drawn_and_the_others_are():
    skipped = np.array([0, 3, 4, 11])
    rows = np.delete(np.arange(12), skipped)
    drawn = draw_negatives(0, rows, rows * 0, 12, 7, skipped=skipped)
    for row, others in zip(rows, drawn.tolist(), strict=True):
        assert sorted([row, *others]) == rows.tolist()
    with pytest.raises(DataError, match="at least 9 articles, the set has 8"):
        draw_negatives(0, rows, rows * 0, 12, 8, skipped=skipped)
    order = EpochOrder([6, 6], "f", 1, 1, skipped)
    drawn = Negatives(order, 2, "window").of(rows, rows * 0)
    assert not np.isin(drawn, skipped).any()
    assert (drawn // 6 == rows[:, None] // 6).all()  # of the row's own shard, which is its window


def test_settings_decide_where_from_and_whether_anew_in_each_epoch():
    order = EpochOrder([40, 40], "f", 1, 1)
    rows, epochs = np.arange(80), np.ones(80, dtype=np.int64)
    corpus, window = Negatives(order, 9), Negatives(order, 9, "window")
    assert (window.of(rows, epochs) // 40 == rows[:, None] // 40).all()
    assert (corpus.of(rows, epochs) // 40 != rows[:, None] // 40).any()
    assert (corpus.of(rows, epochs) != corpus.of(rows, epochs - 1)).any()
    static = Negatives(order, 9, is_static=True)
    assert (static.of(rows, epochs) == corpus.of(rows, epochs - 1)).all()
    assert static.draws(epochs).tolist() == [0] * 80
    with pytest.raises(DataError, match="at least 41 articles"):
        Negatives(order, 40, "window")
    Negatives(order, 40)


def test_draws_over_corpus_and_window_are_not_alike():
    """Where a window is the whole set, what is drawn differs all the same."""
    order = EpochOrder([500], "f", 1, 1)
    rows, epochs = np.arange(500), np.zeros(500, dtype=np.int64)
    corpus, window = Negatives(order, 3), Negatives(order, 3, "window")
    assert (corpus.of(rows, epochs) == window.of(rows, epochs)).mean() < 0.1
