"""An evaluation over ranks: the same numbers as on one, share by share, without processes."""

import numpy as np
import pytest
from helpers.world import TinyWorld, make_world

from shards.clicks import ClickColumn
from trainer.evaluate.metrics import METRIC_NAMES, ranking_metrics
from trainer.evaluate.scoring import score_impressions
from trainer.evaluate.sharded import ALONE, Ranks, encode_shared, measure
from trainer.export.folder import load_export


class Caught(Exception):
    """Ends one rank's work where the others would be waited for."""


class OneOf(Ranks):
    """One rank of several: hands out what it would give to the others."""

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        raise Caught(array)


class AllOf(Ranks):
    """The last rank of several that are known to have given these."""

    def all_gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [*self.group, array]


def over_ranks(world_size: int, work):
    """The result on the last rank, after what each of the others gave."""
    given = []
    for rank in range(world_size - 1):
        with pytest.raises(Caught) as caught:
            work(OneOf(rank, world_size))
        given.append(caught.value.args[0])
    return work(AllOf(world_size - 1, world_size, group=given))


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
    how = {"rows": rows, "history_length": 5}
    alone = measure(model, news_NE, clicks, **how)
    found = over_ranks(world_size, lambda ranks: measure(model, news_NE, clicks, ranks, **how))
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
    alone = encode_shared(model, texts, rows, ALONE)
    found = over_ranks(
        world_size, lambda ranks: encode_shared(model, texts, rows, ranks, batch_tokens=64)
    )
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
