"""An evaluation over ranks: the same numbers as on one, share by share, without processes."""

import numpy as np
import pytest
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from trainer.errors import DataError
from trainer.evaluate.metrics import METRIC_NAMES, ranking_metrics
from trainer.evaluate.scoring import score_impressions
from trainer.evaluate.sharded import Alone, encode_shared, measure_shared, metrics_of
from trainer.export.folder import load_export


class Caught(Exception):
    """Ends one rank's work where the others would be waited for."""


class OneOf:
    """One rank of several: keeps what it would give to the sum."""

    def __init__(self, rank: int, world_size: int, flag: int = 0) -> None:
        self.rank, self.world_size, self.flag = rank, world_size, flag
        self.share = np.zeros(0)

    def sum(self, array: np.ndarray) -> np.ndarray:
        self.share = array
        raise Caught

    def maximum(self, values: list[int]) -> list[int]:
        return [max(value, self.flag) for value in values]


def over_ranks(world_size: int, work) -> np.ndarray:
    """The sum of what every rank gives."""
    shares = []
    for rank in range(world_size):
        ranks = OneOf(rank, world_size)
        with pytest.raises(Caught):
            work(ranks)
        shares.append(ranks.share)
    owners = sum((np.nan_to_num(share, nan=1.0) != 0).astype(int) for share in shares)
    assert owners.max() == 1, "something is done twice"
    return np.sum(shares, axis=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def model(world):
    return load_export(world.teacher("finetune", 1)).load_model()


@pytest.mark.parametrize("world_size", [2, 3, 7, 50])
def test_metrics_are_those_of_one_rank_to_the_bit(world, model, world_size):
    clicks = ClickColumn.open(world.impressions)
    news_NE = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    rows = np.sort(np.random.default_rng(1).permutation(60)[:41])
    scored = score_impressions(model, news_NE, clicks, rows=rows, history_length=5)
    expected = ranking_metrics(scored.scores, clicks.clicked(rows), scored.offsets)
    how = {"history_length": 5}
    alone = measure_shared(model, news_NE, clicks, rows, Alone(), **how)
    values = over_ranks(
        world_size, lambda ranks: measure_shared(model, news_NE, clicks, rows, ranks, **how)
    )
    found = metrics_of(values)
    assert found.to_dict() == alone.to_dict()
    # Sums over other batches of users may round otherwise; ranks hardly ever notice.
    assert alone.to_dict() == pytest.approx(expected.to_dict(), abs=1e-9)
    for name in METRIC_NAMES:
        np.testing.assert_array_equal(getattr(found, f"{name}_n"), getattr(alone, f"{name}_n"))
    assert (found.num_impressions, found.num_skipped) == (alone.num_impressions, alone.num_skipped)


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_vectors_are_those_of_one_rank(world, model, world_size):
    texts = world.tokens.view(("title", 10))
    rows = np.random.default_rng(0).permutation(40)[:31]
    alone = encode_shared(model, texts, rows, Alone())
    found = over_ranks(
        world_size, lambda ranks: encode_shared(model, texts, rows, ranks, batch_tokens=64)
    )
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


def test_scores_that_are_not_finite_on_one_rank_are_an_error_on_all(world, model):
    clicks = ClickColumn.open(world.impressions)
    rows = np.arange(60)
    news_NE = np.ones((40, 12), dtype=np.float32)
    news_NE[clicks.candidates(rows[:1])[0]] = np.nan
    with pytest.raises(DataError, match="not finite"):
        measure_shared(model, news_NE, clicks, rows[:30], OneOf(0, 2), history_length=5)
    with pytest.raises(DataError, match="of another rank"):
        news_NE[:] = 1.0
        measure_shared(model, news_NE, clicks, rows[:30], OneOf(1, 2, flag=1), history_length=5)
