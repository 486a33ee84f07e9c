"""Texts that join several fields of an article, against tokens put together one by one."""

import numpy as np
import pytest

from shards.errors import ColumnError
from tests.helpers.world import TinyWorld, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def joined(world: TinyWorld, row: int, title: int, body: int) -> list[int]:
    """Ids of title and body of one article in one text: each cut, each with its end."""
    tokens = world.tokens
    ids = list(tokens.prefix_ids)
    for field, limit in (("title", title), ("body", body)):
        values, _ = tokens.reader.gather_ragged(field, np.array([row]))
        kept = values[: limit - tokens.num_special].tolist()
        ids += [*kept, *tokens.suffix_ids] if kept else []
    return ids


@pytest.mark.parametrize(("title", "body"), [(10, 20), (4, 12), (10, 3)])
def test_joined_fields_equal_those_put_together_one_by_one(world: TinyWorld, title: int, body: int):
    rows = np.random.default_rng(0).permutation(world.articles.num_rows)
    view = world.tokens.view(("title", title), ("body", body))
    expected = [joined(world, int(row), title, body) for row in rows]
    ids, mask = view.batch(rows)
    assert [i[: m.sum()].tolist() for i, m in zip(ids, mask, strict=True)] == expected
    assert (ids[mask == 0] == world.tokens.pad_id).all()
    assert view.lengths(rows).tolist() == [len(text) for text in expected]
    assert ids.shape[1] == max(map(len, expected)) <= view.max_tokens == title + body - 1
    assert view.batch(rows, pad_to_max=True)[0].shape[1] == view.max_tokens
    found: list[list[int]] = [[] for _ in rows]
    for group in view.groups(rows, 64):
        for place, text, kept in zip(group.places, group.ids, group.mask, strict=True):
            found[place] = text[: kept.sum()].tolist()
    assert found == expected


def test_an_empty_field_is_left_out_with_its_end(world: TinyWorld, monkeypatch):
    tokens = world.tokens
    gather = tokens.reader.gather_ragged
    lengths = tokens.reader.lengths

    def without_titles(name, rows, first=None, last=None):
        values, offsets = gather(name, rows, first, last)
        return (values[:0], offsets * 0) if name == "title" else (values, offsets)

    monkeypatch.setattr(tokens.reader, "gather_ragged", without_titles)
    monkeypatch.setattr(
        tokens.reader, "lengths", lambda name, rows: lengths(name, rows) * (name != "title")
    )
    rows = np.arange(5)
    view, bodies = tokens.view(("title", 10), ("body", 20)), tokens.view(("body", 20))
    assert (view.batch(rows)[0] == bodies.batch(rows)[0]).all()
    assert view.lengths(rows).tolist() == bodies.lengths(rows).tolist()


def test_a_field_that_is_not_stored_or_too_short_is_refused(world: TinyWorld):
    with pytest.raises(ColumnError, match="body and category, not 'entities'"):
        world.tokens.view(("title", 10), ("entities", 10))
    with pytest.raises(ColumnError, match="1000 tokens of each body are requested"):
        world.tokens.view(("title", 10), ("body", 1000))
