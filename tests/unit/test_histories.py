"""Which impressions share a history: against a dictionary, and in the groups that are scored."""

from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles, make_clicks

from shards.clicks import ClickColumn
from shards.histories import holders
from trainer.evaluate.scoring import group_by_history


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> ClickColumn:
    """Few articles and short histories, so that many are equal or differ in order alone."""
    folder: Path = tmp_path_factory.mktemp("histories")
    rng = np.random.default_rng(3)
    samples = [
        {
            "id": str(row),
            "user": "U",
            "time": "",
            "history": rng.integers(0, 3, rng.integers(0, 4)).tolist(),
            "candidates": [0, 1],
            "clicks": [0, 1],
        }
        for row in range(300)
    ]
    articles = make_articles(folder / "articles", 4)
    return make_clicks(folder / "clicks", articles, samples=samples)


def slow_holders(clicks: ClickColumn, length: int, rows: list[int]) -> list[int]:
    first: dict[tuple[int, ...], int] = {}
    found = []
    for place, row in enumerate(rows):
        history = clicks.reader.shard_set.sample(row)["history"]
        key = tuple(history[len(history) - length :] if len(history) > length else history)
        found.append(first.setdefault(key, place))
    return found


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("some", [False, True])
def test_holders_are_the_first_with_the_history(clicks: ClickColumn, length: int, some: bool):
    rows = np.random.default_rng(length).permutation(300)[:120] if some else None
    found = holders(clicks, length, rows)
    expected = slow_holders(clicks, length, list(range(300)) if rows is None else rows.tolist())
    assert found.tolist() == expected
    assert len(set(expected)) < len(expected) / 2


def test_an_empty_log_has_no_holders(clicks: ClickColumn):
    assert holders(clicks, 5, np.zeros(0, dtype=np.int64)).tolist() == []
    groups = group_by_history(clicks, 5, np.zeros(0, dtype=np.int64))
    assert (groups.places_n.tolist(), groups.starts.tolist()) == ([], [0])
    assert groups.num_blocks() == 0


def test_groups_hold_every_impression_once_beside_those_with_its_history(clicks: ClickColumn):
    groups = group_by_history(clicks, 2)
    assert sorted(groups.places_n.tolist()) == list(range(300))
    held = holders(clicks, 2)
    parts = np.split(groups.places_n, groups.starts[1:-1])
    assert len(parts) == len(set(held.tolist()))
    for part in parts:
        assert set(held[part].tolist()) == {part[0]}
    firsts = [part[0] for part in parts]
    assert firsts == sorted(firsts)
