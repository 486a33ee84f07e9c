"""Global batches, rank slices, resuming, and fetching ahead in a thread."""

import threading
import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.order import EpochOrder, Position
from shards.stream import Stream, prefetch


def global_batches(order, global_batch, world_size, steps, position=None):
    """(rows, epochs) of each step, the slices of all ranks side by side."""
    streams = [Stream(order, global_batch, r, world_size, position) for r in range(world_size)]
    out = []
    for _ in range(steps):
        slices = [next(stream) for stream in streams]
        assert len({part.position for part in slices}) == 1
        rows = np.concatenate([part.rows for part in slices]).tolist()
        out.append((rows, np.concatenate([part.epochs for part in slices]).tolist()))
    return out


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda c: sum(c) > 0),
    seed=st.integers(0, 99),
)
def test_world_size_does_not_change_the_batches(counts, seed):
    order = EpochOrder(counts, "f", seed, 2)
    expected = global_batches(order, 24, 1, 6)
    for world_size in (2, 3, 4, 8):
        assert global_batches(EpochOrder(counts, "f", seed, 2), 24, world_size, 6) == expected


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    stops=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    worlds=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=4, max_size=4),
)
def test_resumed_any_number_of_times_gives_the_same_batches(counts, stops, worlds):
    total = sum(stops) + 3
    expected = global_batches(EpochOrder(counts, "f", 1), 6, 1, total)
    got, position = [], None
    for steps, world_size in zip([*stops, 3], worlds, strict=False):
        order = EpochOrder(counts, "f", 1)
        got += global_batches(order, 6, world_size, steps, position)
        consumed = 6 * len(got)
        position = Position.from_dict(order.position_at(consumed).to_dict())
    assert got == expected


def test_position_of_a_batch_is_behind_its_whole_global_batch():
    order = EpochOrder([5, 5], "f", 0)
    stream = Stream(order, 4, rank=1, world_size=2)
    batches = list(islice(stream, 3))
    assert [order.total_at(batch.position) for batch in batches] == [4, 8, 12]
    assert (batches[2].position.epoch, batches[2].position.samples) == (1, 2)
    assert batches[2].position.global_batch == 4
    assert stream.position == batches[2].position


def test_batch_over_the_end_of_an_epoch_knows_the_epoch_of_each_row():
    order = EpochOrder([5], "f", 0)
    batches = [next(iter(Stream(order, 3, position=order.position_at(3))))]
    assert batches[0].epochs.tolist() == [0, 0, 1]
    assert batches[0].rows[2] == order.rows(1, 0, 1)[0]


def test_batch_larger_than_the_set():
    rows, epochs = global_batches(EpochOrder([1, 1], "f", 0), 8, 4, 1)[0]
    assert epochs == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(sorted(rows[i : i + 2]) == [0, 1] for i in range(0, 8, 2))


def test_indivisible_global_batch_is_refused_with_its_arithmetic():
    with pytest.raises(DataError, match=r"10 = 2 x 4 \+ 2; use 8 or 12"):
        Stream(EpochOrder([9], "f", 0), 10, 0, 4)
    with pytest.raises(DataError, match=r"use 4, or another"):
        Stream(EpochOrder([9], "f", 0), 3, 0, 4)


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_outside_the_world_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank {rank} is not within 0 \.\. 1"):
        Stream(EpochOrder([9], "f", 0), 4, rank, 2)


def test_a_position_of_another_global_batch_is_refused():
    order = EpochOrder([9], "f", 1)
    stream = Stream(order, 3)
    next(stream)
    with pytest.raises(DataError, match="global_batch is 3 there and 6 here"):
        Stream(order, 6, position=stream.position)
    # One that does not say, of an older checkpoint, is taken.
    assert Stream(order, 6, position=order.position_at(3)).position.samples == 3


@pytest.mark.parametrize(("changed", "field"), [({"seed": 2}, "seed"), ({}, "fingerprint")])
def test_position_of_another_run_is_refused(changed, field):
    position = EpochOrder([9], "f", 1).position_at(4)
    order = EpochOrder([9], "f" if changed else "g", changed.get("seed", 1))
    with pytest.raises(DataError, match=field):
        Stream(order, 3, position=position)


@settings(deadline=None, max_examples=30)
@given(workers=st.integers(0, 4), depth=st.integers(1, 4), slow=st.sets(st.integers(0, 19)))
def test_prefetch_gives_the_results_in_order_whatever_the_workers(workers, depth, slow):
    def work(x):
        time.sleep(0.002 if x in slow else 0)
        return x * x

    with prefetch(range(20), work, depth, workers) as results:
        assert list(results) == [x * x for x in range(20)]
    assert not prefetching_threads()


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_several_workers_work_at_the_same_time():
    together = threading.Barrier(3, timeout=10)
    with prefetch(range(6), lambda x: (together.wait(), x)[1], workers=3) as results:
        assert list(results) == list(range(6))


def test_without_workers_nothing_runs_ahead_and_all_runs_in_the_calling_thread():
    done = []
    with prefetch(
        range(9), lambda x: done.append(threading.current_thread()), workers=0
    ) as results:
        next(results)
        next(results)
        assert done == [threading.main_thread()] * 2
        assert not prefetching_threads()


def test_prefetch_runs_ahead_but_not_further_than_its_depth():
    done = []
    with prefetch(range(100), lambda x: done.append(x), depth=2) as results:
        next(results)
        time.sleep(0.3)
        # One taken, two waiting, one computed and waiting for room.
        assert 2 <= len(done) <= 4


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("where", ["fn", "iterable"])
def test_prefetch_raises_in_the_consumer_after_what_came_before(where, workers):
    def items():
        yield from (1, 2)
        if where == "iterable":
            raise KeyError("broken shard")
        yield 3

    def work(x):
        if x == 3:
            raise KeyError("broken shard")
        time.sleep(0.05 if x == 1 else 0)  # the failure is known before the first result is
        return x

    results = prefetch(items(), work, workers=workers)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(KeyError, match="broken shard"):
        next(results)
    assert list(results) == []
    assert not prefetching_threads()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_closes_while_its_queue_is_full(workers):
    results = prefetch(iter(int, 1), lambda x: x, workers=workers)  # endless
    next(results)
    results.close()
    results.close()
    assert not any(thread.is_alive() for thread in results._threads)
    assert list(results) == []


@pytest.mark.timeout(20)
def test_closing_wakes_a_consumer_that_waits():
    release = threading.Event()
    results = prefetch([1], lambda x: release.wait(10))
    waiting = threading.Thread(target=lambda: list(results))
    waiting.start()
    threading.Timer(0.3, release.set).start()
    results.close()
    waiting.join(5)
    assert not waiting.is_alive()


def test_prefetch_needs_a_depth_and_no_negative_number_of_workers():
    with pytest.raises(ValueError, match="depth"):
        prefetch([], str, depth=0)
    with pytest.raises(ValueError, match="workers"):
        prefetch([], str, workers=-1)
