"""The click log as columns, and negatives out of the same impression."""

import numpy as np
import pytest
from helpers.sets import impression_samples, make_articles, make_clicks, make_impressions
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shards.clicks import ClickColumn, parse_time, write_click_column
from shards.column_check import verify_columns
from shards.errors import ColumnError, DataError

NUM_ARTICLES, NUM_IMPRESSIONS = 30, 53


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    return make_articles(tmp_path_factory.mktemp("clicks") / "articles", NUM_ARTICLES)


@pytest.fixture(scope="module")
def samples():
    return impression_samples(NUM_IMPRESSIONS, NUM_ARTICLES, seed=1)


@pytest.fixture(scope="module")
def clicks(articles, samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clicks") / "impressions"
    return make_clicks(folder, articles, samples=samples, samples_per_shard=10)


def impression(candidates, clicks, history=(), user="U", time=""):
    return {
        "id": "1",
        "user": user,
        "time": time,
        "history": list(history),
        "candidates": list(candidates),
        "clicks": list(clicks),
    }


def test_one_unit_a_click_in_the_order_of_the_log(clicks, samples):
    expected = [
        (row, position)
        for row, sample in enumerate(samples)
        for position, clicked in enumerate(sample["clicks"])
        if clicked
    ]
    rows, positions = clicks.click(np.arange(clicks.num_clicks))
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == expected
    assert len(clicks.clicks_per_shard) == 6 and sum(clicks.clicks_per_shard) == len(expected)
    first_shard = sum(sum(sample["clicks"]) for sample in samples[:10])
    assert clicks.clicks_per_shard[0] == first_shard
    assert clicks.num_left_out == 0 and clicks.labelled
    chosen = np.array([len(expected) - 1, 0, 7, 7])
    rows, positions = clicks.click(chosen)
    got = list(zip(rows.tolist(), positions.tolist(), strict=True))
    assert got == [expected[i] for i in chosen]


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, NUM_IMPRESSIONS - 1), max_size=20), length=st.integers(1, 12))
def test_history_is_the_last_clicks_at_the_right(clicks, samples, rows, length):
    history, mask = clicks.history(np.array(rows, dtype=np.int64), length)
    assert history.shape == mask.shape == (len(rows), length)
    assert history.dtype == np.int64
    for row, line, there in zip(rows, history.tolist(), mask.tolist(), strict=True):
        kept = samples[row]["history"][-length:]
        assert line == [-1] * (length - len(kept)) + kept
        assert there == [value >= 0 for value in line]


def test_candidates_and_labels(clicks, samples):
    rows = np.array([52, 0, 13, 0])
    values, offsets = clicks.candidates(rows)
    labels = clicks.clicked(rows)
    for i, row in enumerate(rows.tolist()):
        part = slice(offsets[i], offsets[i + 1])
        assert values[part].tolist() == samples[row]["candidates"]
        assert labels[part].tolist() == samples[row]["clicks"]
    assert values.dtype == np.int64 and labels.dtype == np.uint8


def test_users_are_numbered_by_first_appearance_over_all_shards(clicks, samples):
    numbers = {}
    expected = [numbers.setdefault(sample["user"], len(numbers)) for sample in samples]
    assert clicks.user(np.arange(NUM_IMPRESSIONS)).tolist() == expected
    assert len(numbers) < NUM_IMPRESSIONS


def test_times(clicks, samples):
    assert samples[6]["time"] == "2019-11-12T08:00:06"
    assert clicks.time(np.array([6])).tolist() == [1573545606]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2019-11-15T08:55:22", 1573808122),
        ("2019-11-15T08:55:22+00:00", 1573808122),
        ("2019-11-15T09:55:22+01:00", 1573808122),
        ("2019-11-15", 1573776000),
        ("11/15/2019 8:55:22 AM", 1573808122),
        ("11/15/2019 12:00:00 AM", 1573776000),
        ("1969-12-31T23:59:00", -60),
        ("yesterday", -1),
        ("", -1),
    ],
)
def test_time_formats(text, seconds):
    assert parse_time(text) == seconds


def test_negatives_are_unclicked_candidates_of_the_same_impression(clicks, samples):
    units = np.arange(clicks.num_clicks)
    rows, _ = clicks.click(units)
    drawn = clicks.sample_negatives(3, units, units % 2, 4)
    assert drawn.shape == (len(units), 4)
    repeated = 0
    for row, positions in zip(rows.tolist(), drawn.tolist(), strict=True):
        unclicked = [i for i, clicked in enumerate(samples[row]["clicks"]) if not clicked]
        assert set(positions) <= set(unclicked)
        assert len(set(positions)) == min(4, len(unclicked))
        if len(unclicked) < 4:
            repeated += 1
            assert positions == [positions[i % len(unclicked)] for i in range(4)]
    assert 0 < repeated < len(units), "both cases must have been seen"


def test_negatives_do_not_depend_on_the_batch(clicks):
    units = np.arange(clicks.num_clicks)
    whole = clicks.sample_negatives(3, units, units % 3, 4)
    chosen = np.array([5, 40, 5, 12])
    part = clicks.sample_negatives(3, chosen, chosen % 3, 4)
    np.testing.assert_array_equal(part, whole[chosen])
    assert (clicks.sample_negatives(3, units, units % 3 + 1, 4) != whole).any()
    assert (clicks.sample_negatives(4, units, units % 3, 4) != whole).any()


def test_two_clicks_of_one_impression_draw_apart(articles, tmp_path):
    sample = impression(range(20), [1, 1] + [0] * 18)
    clicks = make_clicks(tmp_path / "i", articles, samples=[sample])
    epochs = np.arange(200)
    one, two = (clicks.sample_negatives(0, epochs * 0 + unit, epochs, 4) for unit in (0, 1))
    assert (one != two).any(axis=1).mean() > 0.9


def test_negatives_are_uniform(articles, tmp_path):
    sample = impression(range(12), [0, 0, 1] + [0] * 9)
    clicks = make_clicks(tmp_path / "i", articles, samples=[sample])
    epochs = np.arange(20_000)
    drawn = clicks.sample_negatives(0, epochs * 0, epochs, 4)
    for place in range(4):
        found = np.bincount(drawn[:, place], minlength=12)
        assert found[2] == 0
        assert stats.chisquare(np.delete(found, 2)).pvalue > 1e-4


def test_clicks_without_an_unclicked_candidate_are_left_out_and_counted(articles, tmp_path):
    samples = [
        impression([1, 2], [1, 1]),
        impression([3, 4, 5], [0, 1, 1]),
        impression([6], [1]),
        impression([7, 8], [0, 1]),
    ]
    clicks = make_clicks(tmp_path / "i", articles, samples=samples, samples_per_shard=3)
    assert clicks.clicks_per_shard == [2, 1]
    assert clicks.num_left_out == 3
    rows, positions = clicks.click(np.arange(3))
    assert rows.tolist() == [1, 1, 3] and positions.tolist() == [1, 2, 1]
    assert (
        clicks.sample_negatives(0, np.arange(3), np.zeros(3, np.int64), 2).tolist() == [[0, 0]] * 3
    )
    assert clicks.clicked(np.arange(4)).tolist() == [1, 1, 0, 1, 1, 1, 0, 1]


def test_an_article_that_is_clicked_at_one_place_is_a_negative_at_none(articles, tmp_path):
    samples = [
        impression([1, 2, 1, 3, 4], [1, 0, 0, 1, 0]),  # 1 is shown again: its negatives are 2, 4
        impression([5, 5, 6], [0, 1, 1]),  # nothing is left beside what was clicked
        impression([7, 7, 8, 8], [1, 1, 0, 0]),  # two clicks of one article, a negative shown twice
    ]
    clicks = make_clicks(tmp_path / "i", articles, samples=samples)
    assert clicks.num_clicks == 4 and clicks.num_left_out == 2
    rows, positions = clicks.click(np.arange(4))
    assert rows.tolist() == [0, 0, 2, 2] and positions.tolist() == [0, 3, 0, 1]
    epochs = np.arange(50)
    for unit, allowed in ((0, {1, 4}), (1, {1, 4}), (2, {2, 3}), (3, {2, 3})):
        drawn = clicks.sample_negatives(0, epochs * 0 + unit, epochs, 2)
        assert {frozenset(places) for places in drawn.tolist()} == {frozenset(allowed)}
    # The labels stay what the log says, for evaluation.
    assert clicks.clicked(np.array([0])).tolist() == [1, 0, 0, 1, 0]


def test_negatives_of_columns_from_before_that_are_refused(articles, tmp_path, monkeypatch):
    sample = impression([5, 5], [0, 1])
    monkeypatch.setattr(
        "shards.click_cells.negative_places", lambda values, clicked, offsets: np.array([0])
    )
    clicks = make_clicks(tmp_path / "i", articles, samples=[sample])
    assert clicks.num_clicks == 1
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"impression 0 of .* no candidate .*") as caught:
        clicks.sample_negatives(0, np.array([0]), np.array([0]), 2)
    removal = f"`tnr shards columns {tmp_path / 'i'} --remove {clicks.reader.folder.name} --yes`"
    assert removal in str(caught.value) and "--force" not in str(caught.value)


def test_log_without_labels(articles, tmp_path):
    clicks = make_clicks(tmp_path / "i", articles, labelled=False)
    assert not clicks.labelled and clicks.num_clicks == 0 and clicks.num_left_out == 0
    assert clicks.clicks_per_shard == [0, 0, 0]
    assert len(clicks.candidates(np.arange(5))[1]) == 6
    with pytest.raises(DataError, match="has no labels"):
        clicks.clicked(np.arange(5))


def test_clicks_that_are_not_there(clicks):
    for unit in (-1, clicks.num_clicks):
        with pytest.raises(IndexError, match=f"the log has {clicks.num_clicks}"):
            clicks.click(np.array([0, unit]))


def test_written_once_and_completed_after_a_loss(articles, tmp_path, samples):
    impressions = make_impressions(tmp_path / "i", articles, samples=samples, samples_per_shard=10)
    folder = ClickColumn.open(impressions).reader.folder
    before = ClickColumn.open(impressions).user(np.arange(NUM_IMPRESSIONS)).tolist()
    (folder / "impressions-000003.json").unlink()
    with pytest.raises(ColumnError, match=r"1 of 6 .*tnr shards build"):
        ClickColumn.open(impressions)
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    reader = write_click_column(impressions)
    changed = {p.name for p in folder.iterdir() if p.stat().st_mtime_ns != times.get(p)}
    assert changed == {"impressions-000003.json", "impressions-000003.safetensors"}
    assert ClickColumn(reader).user(np.arange(NUM_IMPRESSIONS)).tolist() == before
    assert verify_columns(reader) == []


@pytest.mark.parametrize(
    "bad",
    [
        impression([1, 2], [1]),
        impression([1, 2], [1, 2]),
        impression([1, 2], [1, 0]) | {"candidates": ["N1", "N2"]},
        impression([1, 2], [1, 0]) | {"history": None},
    ],
)
def test_impressions_that_cannot_be_used(articles, tmp_path, bad):
    with pytest.raises(DataError, match="build the set again"):
        make_impressions(tmp_path / "i", articles, samples=[impression([3, 4], [0, 1]), bad])


def test_articles_are_no_impressions(articles):
    with pytest.raises(DataError, match="not impressions"):
        write_click_column(articles)
