"""Rows C1 to C4 and D5: resumed runs, other ranks and workers, and sets too small to share out."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.inprocess import train, train_until_crash
from helpers.launch import metrics
from helpers.sets import make_articles, make_impressions, make_tokens
from helpers.toy import ToyData
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.clicks import ClickColumn
from shards.errors import DataError
from shards.order import EpochOrder, Position
from shards.stream import Stream, prefetch
from shards.writer import ShardWriter
from trainer.errors import CheckpointError
from trainer.tasks.base import data_fingerprint
from trainer.tasks.finetune.clicks import ClickData
from trainer.tasks.finetune.sources import ClickSources
from trainer.tasks.finetune.task import FinetuneConfig

GLOBAL_BATCH = 24  # shared evenly by 1, 2, 3, 4 and 8 ranks
WORLDS = (1, 2, 3, 4, 8)

counts_lists = st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(lambda c: sum(c) > 0)
shapes = st.tuples(st.sampled_from(WORLDS), st.sampled_from((0, 1, 2)), st.integers(1, 24))


def steps_of(counts, num_steps, position=None, shape=(1, 0, 24), seed=5):
    """Global batches as the trainer sees them: (rows, epochs) of all ranks' micro-batches, and the
    position behind the last one, as a checkpoint stores it."""
    world, workers, micro = shape
    ranks = []
    for rank in range(world):
        order = EpochOrder(counts, "f", seed, 2)
        stream = Stream(order, GLOBAL_BATCH, rank, world, position)
        ranks.append(prefetch(stream, lambda batch: batch.split(micro), workers=workers))
    steps = []
    try:
        for _ in range(num_steps):
            parts = [part for rank in ranks for part in next(rank)]
            rows = np.concatenate([part.rows for part in parts]).tolist()
            steps.append((rows, np.concatenate([part.epochs for part in parts]).tolist()))
            position = parts[-1].position
    finally:
        for rank in ranks:
            rank.close()
    return steps, None if position is None else Position.from_dict(position.to_dict())


@pytest.mark.timeout(300)
@settings(deadline=None, max_examples=25)
@given(
    counts=counts_lists,
    stops=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    chosen=st.lists(shapes, min_size=4, max_size=4),
)
def test_c1_c2_resumed_up_to_three_times_on_other_ranks_workers_and_micro_batches(
    counts, stops, chosen
):
    parts = [*stops, 3]
    expected, _ = steps_of(counts, sum(parts))
    got, position = [], None
    for num_steps, shape in zip(parts, chosen, strict=False):
        steps, position = steps_of(counts, num_steps, position, shape)
        got += steps
    assert got == expected


@settings(deadline=None, max_examples=25)
@given(counts=counts_lists, epochs=st.integers(1, 3))
def test_every_row_exactly_once_an_epoch_through_the_global_batches(counts, epochs):
    total = sum(counts)
    steps, _ = steps_of(counts, -(-total * epochs // GLOBAL_BATCH))
    seen = [(e, r) for rows, of in steps for r, e in zip(rows, of, strict=True)]
    whole = [pair for pair in seen if pair[0] < epochs]
    assert sorted(whole) == [(e, r) for e in range(epochs) for r in range(total)]
    assert [e for e, _ in seen] == sorted(e for e, _ in seen)


@pytest.mark.parametrize(
    "consumed",
    [0, 24, 72, 96, 120],
    ids=["epoch start", "first", "last full batch", "partial batch", "next epoch"],
)
def test_c3_resumed_at_the_ends_of_an_epoch(consumed):
    """An epoch of 90: its fourth batch is the partial one, filled from the next epoch."""
    counts = [30, 0, 40, 20]
    expected, _ = steps_of(counts, 8)
    position = replace(EpochOrder(counts, "f", 5, 2).position_at(consumed), global_batch=24)
    for shape in ((1, 0, 24), (4, 2, 5)):
        rest, _ = steps_of(counts, 8 - consumed // 24, position, shape)
        assert rest == expected[consumed // 24 :]


def test_c3_runs_of_two_stages_in_a_row_each_start_their_own_order(tmp_path):
    """Between stages nothing is carried over: another run folder starts at its own beginning."""
    first = train(tmp_path / "one", run__max_steps=6)
    train_until_crash(tmp_path / "two", 3, run__max_steps=6)
    second = train(tmp_path / "two", run__max_steps=6)
    assert metrics(second) == metrics(first)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run__seed": 4}, "run.seed was 3 and is now 4"),
        ({"run__global_batch": 16}, "run.global_batch was 8 and is now 16"),
        ({"data__window_shards": 9}, "data.window_shards was 4 and is now 9"),
    ],
)
def test_c4_another_seed_or_global_batch_at_resume_is_refused_by_name(tmp_path, changes, field):
    train_until_crash(tmp_path / "run", 7)
    with pytest.raises(CheckpointError, match=field):
        train(tmp_path / "run", **changes)


class OtherData(ToyData):
    """The toy's data under another fingerprint."""

    fingerprint = ""

    def __init__(self, fingerprint: str) -> None:
        super().__init__(seed=3)
        self.fingerprint = fingerprint


@pytest.mark.parametrize("changed", ["shards", "tokenizer"])
def test_c4_another_shard_list_or_tokenizer_at_resume_is_refused_by_name(tmp_path, changed):
    articles = make_articles(tmp_path / "a", 30)
    before = fingerprint_of(articles, make_tokens(articles, tmp_path / "t"))
    if changed == "shards":
        articles = make_articles(tmp_path / "b", 30, samples_per_shard=10)
        now = fingerprint_of(articles, make_tokens(articles, tmp_path / "t2"))
        field = "data.articles"
    else:
        articles = make_articles(tmp_path / "c", 30)
        now = fingerprint_of(articles, make_tokens(articles, tmp_path / "t3", vocab_size=60))
        field = "data.tokens"
    with pytest.raises(Exception, match="crash"):
        train(tmp_path / "run", data=Crashing(before, after=50))
    with pytest.raises(
        CheckpointError, match=rf"{field} .*had fingerprint \w+ and now has"
    ) as told:
        train(tmp_path / "run", data=OtherData(now))
    if changed == "tokenizer":
        assert "data.articles" not in str(told.value)


class Crashing(OtherData):
    """Raises once so many samples are asked for."""

    def __init__(self, fingerprint: str, after: int) -> None:
        super().__init__(fingerprint)
        self._after = after

    def collate(self, batch_rows):
        if batch_rows.position.samples > self._after:
            raise RuntimeError("crash")
        return super().collate(batch_rows)


def fingerprint_of(articles, tokens) -> str:
    return data_fingerprint(articles=articles, tokens=tokens.reader)


def test_c4_another_global_batch_is_refused_by_the_position_itself():
    order = EpochOrder([50], "f", 1)
    stream = Stream(order, 6)
    next(stream)
    position = Position.from_dict(stream.position.to_dict())
    with pytest.raises(DataError, match="global_batch is 6 there and 12 here"):
        Stream(order, 12, position=position)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("counts", [[1], [1, 1], [0, 3, 0]], ids=["one sample", "two", "three"])
def test_d5_fewer_shards_than_ranks_times_workers(counts, workers):
    steps, _ = steps_of(counts, 2, shape=(8, workers, 2))
    flat = [row for rows, _ in steps for row in rows]
    assert len(flat) == 48
    for start in range(0, 48 - sum(counts) + 1, sum(counts)):
        assert sorted(flat[start : start + sum(counts)]) == list(range(sum(counts)))


def test_d5_a_set_of_no_samples_cannot_be_written_and_no_clicks_cannot_be_trained_on(tmp_path):
    with (
        ShardWriter(tmp_path / "empty", "articles", samples_per_shard=4) as writer,
        pytest.raises(DataError, match="no articles are left"),
    ):
        writer.finish()
    articles = make_articles(tmp_path / "a", 12)
    tokens = make_tokens(articles, tmp_path / "t")
    log = make_impressions(tmp_path / "log", articles, 9, labelled=False)
    config = FinetuneConfig()
    with pytest.raises(DataError, match=f"{log.path} has no labels: .*end in -1 .clicked. or -0"):
        ClickData(config, ClickSources(articles, tokens, log, ClickColumn.open(log), config))
