"""Distinct titles of batches against a slow count, and the titles dealt out to ranks."""

import numpy as np
import pytest
from helpers.sets import make_articles, make_impressions
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.click_batch import ClickRule, click_order, read_clicks
from shards.clicks import ClickColumn
from shards.sharing import measure_sharing
from shards.stream import Stream
from trainer.tasks.finetune.shared_titles import Share, deal

RULE = ClickRule(seed=7, num_negatives=3, history_length=4)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks")
    return ClickColumn.open(make_impressions(folder / "i", make_articles(folder / "a"), 90))


def slowly_named(clicks, samples, unit, epoch):
    """Articles that one click names."""
    (row,), (position,) = clicks.click(np.array([unit]))
    sample = samples[row]
    drawn = clicks.sample_negatives(RULE.seed, np.array([unit]), np.array([epoch]), 3)[0]
    places = [int(position), *drawn.tolist()]
    return sample["user"], sample["history"][-4:] + [sample["candidates"][p] for p in places]


@pytest.mark.parametrize("user_block", [1, 4])
def test_the_numbers_are_those_of_a_slow_count(clicks, user_block):
    shard_set = clicks.reader.shard_set
    samples = [shard_set.sample(row) for row in range(shard_set.num_rows)]
    order = click_order(clicks, RULE.seed, 99, user_block)
    found = measure_sharing(order, clicks, RULE, micro_batch=2, global_batch=12, ranks=3)
    expected = []
    for start in range(0, clicks.num_clicks, 12):
        units, epochs = order.span(start, start + 12)
        of_all, per_rank = set(), []
        for rank in range(3):
            said = [
                slowly_named(clicks, samples, units[i], epochs[i])
                for i in range(4 * rank, 4 * rank + 2)
            ]
            named = [article for _, articles in said for article in articles]
            per_rank.append((len({user for user, _ in said}), len(named), len(set(named))))
            of_all |= set(named)
        most = max(distinct for *_, distinct in per_rank)
        expected.append([*np.mean(per_rank, axis=0), most, len(of_all)])
    users, named, distinct, most, over_ranks = np.mean(expected, axis=0)
    assert (found.users, found.named) == pytest.approx((users, named))
    assert (found.distinct, found.most_distinct) == pytest.approx((distinct, most))
    assert found.distinct_over_ranks == pytest.approx(over_ranks)
    assert found.kept_over_ranks == pytest.approx(over_ranks / (3 * most))
    assert f"{100 * over_ranks / (3 * most):.0f}% of them if all" in found.line()


def test_blocks_of_a_users_clicks_name_fewer_titles(clicks):
    found = [
        measure_sharing(click_order(clicks, 7, 99, block), clicks, RULE, 16, 16, 1)
        for block in (1, 8)
    ]
    assert found[1].users < 0.8 * found[0].users
    assert found[1].distinct < found[0].distinct
    assert "ranks" not in found[0].line()


@settings(deadline=None, max_examples=80)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=40).map(np.array),
    ranks=st.integers(1, 8),
)
def test_titles_are_dealt_out_evenly(lengths, ranks):
    dealt = deal(lengths, ranks)
    assert dealt.shape == (ranks, -(-len(lengths) // ranks))
    assert set(dealt.ravel().tolist()) == set(range(len(lengths)))
    tokens = lengths[dealt].sum(axis=1)
    # Two rounds cancel but for what their lengths differ by; never more than the longest title.
    assert tokens.max() - tokens.min() <= lengths.max() - lengths.min()
    for again in np.flatnonzero(np.bincount(dealt.ravel()) > 1):
        assert lengths[again] == lengths.min()


def test_shares_of_all_ranks_hold_what_each_rank_names():
    rng = np.random.default_rng(0)
    named = [rng.integers(100, size=30) for _ in range(3)]
    lengths = rng.integers(2, 20, size=100)
    shares = [Share.of(np.concatenate(named), lengths.__getitem__, 3, rank) for rank in range(3)]
    laid_out = np.concatenate([share.rows_S for share in shares])
    assert len(laid_out) < sum(len(set(part.tolist())) for part in named)
    for share, part in zip(shares, named, strict=True):
        own = np.unique(part)
        np.testing.assert_array_equal(laid_out[share.places(own)], own)


def test_a_stream_says_what_the_other_ranks_read(clicks):
    order = click_order(clicks, 7)
    streams = [Stream(order, 12, rank, 3) for rank in range(3)]
    batches = [next(stream) for stream in streams]
    for rank, batch in enumerate(batches):
        assert batch.peers.rank == rank
        np.testing.assert_array_equal(batch.peers.rows, [other.rows for other in batches])
        for m, part in enumerate(batch.split(2)):
            peers = [other.rows[2 * m : 2 * m + 2] for other in batches]
            np.testing.assert_array_equal(part.peers.rows, peers)
            np.testing.assert_array_equal(part.rows, part.peers.rows[rank])
    assert next(Stream(order, 12)).peers is None


def test_part_of_clicks_is_those_clicks(clicks):
    units, epochs = np.arange(10), np.zeros(10, dtype=np.int64)
    whole, part = (
        read_clicks(clicks, RULE, units, epochs),
        read_clicks(clicks, RULE, units[4:7], epochs[4:7]),
    )
    cut = whole.part(4, 3)
    for name in ("impression_B", "positions_BC", "history_BH", "mask_BH", "candidates_BC"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(part, name))
    assert len(cut) == 3
