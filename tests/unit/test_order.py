"""The order of an epoch, as a pure function that any rank and any resumed run agrees on."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.order import BatchRows, EpochOrder, PeerRows, Position, keyed_permutation

counts_lists = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda c: sum(c) > 0)


@settings(deadline=None, max_examples=60)
@given(counts=counts_lists, seed=st.integers(-5, 2**70), window=st.integers(1, 5))
def test_every_unit_once_an_epoch(counts, seed, window):
    order = EpochOrder(counts, "f", seed, window)
    for epoch in (0, 1, 7):
        rows = order.rows(epoch, 0, order.num_units)
        assert sorted(rows.tolist()) == list(range(sum(counts)))


@settings(deadline=None, max_examples=60)
@given(counts=counts_lists, data=st.data())
def test_any_range_is_that_part_of_the_whole(counts, data):
    order = EpochOrder(counts, "f", 3, 2)
    start = data.draw(st.integers(0, order.num_units))
    stop = data.draw(st.integers(start, order.num_units))
    whole = EpochOrder(counts, "f", 3, 2).rows(5, 0, order.num_units)
    np.testing.assert_array_equal(order.rows(5, start, stop), whole[start:stop])


def test_order_depends_on_fingerprint_seed_epoch_and_window():
    def rows(fingerprint="f", seed=0, epoch=0, window=2):
        order = EpochOrder([20] * 6, fingerprint, seed, window)
        return order.rows(epoch, 0, 120).tolist()

    base = rows()
    others = [rows(fingerprint="g"), rows(seed=1), rows(epoch=1), rows(window=3)]
    assert all(other != base for other in others)
    assert rows() == base


def test_the_order_itself_never_changes():
    """Other numbers here would break every run that is resumed after an update."""
    assert EpochOrder([5, 0, 4, 3], "fp", 42, 2).rows(1, 0, 12).tolist() == [
        8,
        9,
        10,
        7,
        6,
        11,
        5,
        0,
        4,
        2,
        3,
        1,
    ]
    assert keyed_permutation(["a", 1], 6).tolist() == [5, 1, 0, 2, 4, 3]


def test_units_of_a_window_come_from_its_shards_alone():
    order = EpochOrder([10] * 8, "f", 0, window_shards=2)
    for start in range(0, 80, 20):
        assert len(set((order.rows(0, start, start + 20) // 10).tolist())) == 2


def test_only_windows_that_are_touched_are_made(monkeypatch):
    order = EpochOrder([10] * 100, "f", 0, window_shards=2)
    made = []
    make = order._make_window
    monkeypatch.setattr(order, "_window", lambda e, w: (made.append(w), make(e, w))[1])
    order.rows(0, 500, 530)
    assert len(set(made)) == 2


def test_span_runs_over_epochs():
    order = EpochOrder([3, 2], "f", 0)
    rows, epochs = order.span(3, 13)
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert sorted(rows[2:7].tolist()) == [0, 1, 2, 3, 4]
    rows, epochs = order.span(4, 4)
    assert len(rows) == len(epochs) == 0


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="2 shards hold no samples"):
        EpochOrder([0, 0], "f", 0)


def test_range_outside_of_the_epoch_is_an_error():
    order = EpochOrder([4], "f", 0)
    with pytest.raises(IndexError, match="0:4"):
        order.rows(0, 2, 5)


@given(total=st.integers(0, 10**6))
def test_position_is_the_inverse_of_the_total(total):
    order = EpochOrder([7, 6], "f", 9)
    position = order.position_at(total)
    assert position.samples < order.num_units
    again = Position.from_dict(json.loads(json.dumps(position.to_dict())))
    assert again == position
    assert order.total_at(again) == total


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (EpochOrder([7, 6], "other", 9), "fingerprint"),
        (EpochOrder([7, 6], "f", 8), "seed"),
        (EpochOrder([7, 7], "f", 9), "num_units"),
        (EpochOrder([7, 6], "f", 9, 3), "window_shards"),
    ],
)
def test_position_of_another_order_is_refused_by_field(other, field):
    order = EpochOrder([7, 6], "f", 9)
    with pytest.raises(DataError, match=rf"{field} is .* there and .* here") as caught:
        order.total_at(other.position_at(20))
    others = {"fingerprint", "seed", "num_units", "window_shards"} - {field}
    assert not any(f"{name} is" in str(caught.value) for name in others)


@pytest.mark.parametrize(
    "values",
    [
        {"fingerprint": "f", "seed": 1, "epoch": 0},
        {"fingerprint": "f", "seed": 1, "epoch": 0, "samples": 0, "rank": 3},
        {"fingerprint": "f", "seed": 1, "epoch": 0, "samples": "4"},
        {"fingerprint": "f", "seed": 1, "epoch": -1, "samples": 4},
        {"fingerprint": "f", "seed": 1, "epoch": 1, "samples": -4},
    ],
)
def test_what_is_no_position_is_refused(values):
    with pytest.raises(DataError, match="position"):
        Position.from_dict(values)


@pytest.mark.parametrize("samples", [13, 14])
def test_a_position_beyond_its_epoch_is_refused(samples):
    order = EpochOrder([7, 6], "f", 9)
    with pytest.raises(DataError, match=f"{samples} samples consumed of an epoch of 13"):
        order.total_at(Position("f", 9, 2, samples))
    assert order.total_at(Position("f", 9, 2, 12)) == 38


def test_what_peers_read_is_cut_with_the_batch():
    rows, epochs = np.arange(14).reshape(2, 7), np.arange(14).reshape(2, 7) // 5
    position = EpochOrder([50], "f", 0).position_at(14)
    batch = BatchRows(rows[1], epochs[1], position, PeerRows(rows, epochs, 1))
    parts = batch.split(3)
    assert [part.peers.rows.tolist() for part in parts] == [
        [[0, 1, 2], [7, 8, 9]], [[3, 4, 5], [10, 11, 12]], [[6], [13]]
    ]  # fmt: skip
    for part in parts:
        assert part.peers.rank == 1
        assert part.rows.tolist() == part.peers.rows[1].tolist()
        assert part.epochs.tolist() == part.peers.epochs[1].tolist()


@given(n=st.integers(0, 40), micro=st.integers(1, 50))
def test_micro_batches_are_the_batch_in_order(n, micro):
    position = EpochOrder([50], "f", 0).position_at(n)
    batch = BatchRows(np.arange(n), np.arange(n) % 2, position)
    parts = batch.split(micro)
    assert [row for part in parts for row in part.rows.tolist()] == list(range(n))
    assert [e for part in parts for e in part.epochs.tolist()] == batch.epochs.tolist()
    assert all(len(part) == micro for part in parts[:-1])
    assert all(part.position == position for part in parts)


@settings(deadline=None, max_examples=60)
@given(counts=counts_lists, window=st.integers(1, 4), data=st.data())
def test_skipped_units_never_come_and_every_other_one_comes_once(counts, window, data):
    total = sum(counts)
    skipped = data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))
    order = EpochOrder(counts, "f", 3, window, np.array(sorted(skipped), dtype=np.int64))
    left = [unit for unit in range(total) if unit not in skipped]
    assert order.num_units == len(left)
    for epoch in (0, 2):
        assert sorted(order.rows(epoch, 0, order.num_units).tolist()) == left
    shard_of = np.repeat(np.arange(len(counts)), counts)
    kept = np.bincount(shard_of[left], minlength=len(counts))
    assert order.kept_counts.tolist() == kept.tolist()
    sizes = [np.diff(order.window_starts(epoch)).min() for epoch in range(20)]
    assert order.smallest_window() <= min(sizes)


def test_skipped_units_make_another_order_and_must_be_there():
    none, first, last = (EpochOrder([7, 6], "f", 9, 4, rows) for rows in (None, [0], [12]))
    assert len({order.fingerprint for order in (none, first, last)}) == 3
    with pytest.raises(DataError, match="fingerprint is"):
        last.total_at(first.position_at(3))
    for outside in ([13], [-1]):
        with pytest.raises(ValueError, match="not within 0:13"):
            EpochOrder([7, 6], "f", 9, 4, outside)


def test_smallest_window_counts_what_is_left_of_the_shards():
    assert EpochOrder([5, 9], "f", 0, 1, [0, 1, 2]).smallest_window() == 2
    assert EpochOrder([5, 9, 4], "f", 0, 2).smallest_window() == 4


def test_windows_from_a_position_are_those_of_the_units_that_come():
    order = EpochOrder([3, 0, 2, 4, 0, 0, 1], "f", 5, 2)
    for total in range(2 * order.num_units + 1):
        rows, epochs = order.span(total, total + 2 * order.num_units)
        windows = [int(order.windows_of(int(e), rows[n : n + 1])[0]) for n, e in enumerate(epochs)]
        visits = [
            visit for visit, _ in itertools.groupby(zip(epochs.tolist(), windows, strict=True))
        ]
        found = itertools.islice(order.windows_from(order.position_at(total)), len(visits))
        expected = [order.shards_of_window(*visit).tolist() for visit in visits]
        assert [sorted(shards) for shards in found] == expected


def test_equal_draws_keep_their_order(monkeypatch):
    """A sort that is not stable would differ between versions of NumPy and processors."""
    draws = np.tile(np.arange(7, dtype=np.uint64), 100)
    monkeypatch.setattr("shards.order.keyed_draws", lambda key, n: draws[:n])
    expected = [at for value in range(7) for at in range(value, 700, 7)]
    assert keyed_permutation(["k"], 700).tolist() == expected
