"""The shape of MIND: what is drawn has the statistics that are published, and a world can take
them."""

import re

import numpy as np
import pytest

from shards.errors import UsageError
from shards.world.settings import WorldSettings
from shards.world.shape import (
    EMPTY_HISTORIES,
    candidate_counts,
    click_counts,
    fill_lengths,
    like_mind,
)
from shards.world.synthesize import synthesize
from trainer.cli.main import main

COUNT = 200_000


def test_histories_have_minds_lengths():
    rng = np.random.default_rng(0)
    empty = rng.random(COUNT) < EMPTY_HISTORIES
    lengths = fill_lengths(rng, empty, longest=801)
    assert lengths.dtype == np.int64 and len(lengths) == COUNT
    assert lengths.mean() == pytest.approx(32.9, rel=0.02)
    assert np.median(lengths) == pytest.approx(19, abs=1)
    assert np.percentile(lengths, 95) == pytest.approx(110, rel=0.05)
    assert 600 < lengths.max() <= 801
    assert (lengths == 0).mean() == pytest.approx(0.022, abs=0.002)
    assert (lengths > 50).mean() == pytest.approx(0.20, abs=0.03)
    assert fill_lengths(rng, empty, longest=100).max() == 100
    assert not fill_lengths(rng, empty, mean=0.0).any()


def test_impressions_have_minds_candidates_and_clicks():
    rng = np.random.default_rng(0)
    counts = candidate_counts(rng, COUNT, most=300)
    assert counts.mean() == pytest.approx(37.4, rel=0.02)
    assert np.median(counts) == pytest.approx(24, abs=1)
    assert np.percentile(counts, 95) == pytest.approx(119, rel=0.06)
    assert (counts.min(), counts.max()) == (2, 300)
    clicks = click_counts(rng, counts)
    assert ((clicks >= 1) & (clicks < counts)).all()
    assert (clicks >= 2).mean() == pytest.approx(0.28, abs=0.01)
    assert clicks.mean() == pytest.approx(3_383_656 / 2_232_748, rel=0.02)


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    folder = tmp_path_factory.mktemp("like-mind")
    sizes = {"train_impressions": 700, "dev_impressions": 300, "test_impressions": 400}
    settings = like_mind(0.02) | sizes | {"users": 900}
    return folder, synthesize(WorldSettings(**settings), folder)


def columns(folder, part):
    lines = (folder / part / "behaviors.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines]


def test_a_world_like_mind_has_a_test_part_without_labels(like):
    folder, truth = like
    assert truth["files"].keys() >= {"test/news.tsv", "test/behaviors.tsv"}
    for part, days in (
        ("train", "09|10|11|12|13|14"),
        ("dev", "15"),
        ("test", "16|17|18|19|2[0-2]"),
    ):
        rows = columns(folder, part)
        assert len(rows) == truth["settings"][f"{part}_impressions"]
        for row in rows:
            assert re.match(rf"11/({days})/2019 ", row[2])
            ending = r"N\d+" if part == "test" else r"N\d+-[01]"
            assert all(re.fullmatch(ending, item) for item in row[4].split())
    histories: dict[str, str] = {}
    for row in (*columns(folder, "train"), *columns(folder, "dev"), *columns(folder, "test")):
        assert histories.setdefault(row[1], row[3]) == row[3]


def test_news_grows_from_part_to_part_and_every_log_knows_its_news(like):
    folder, _ = like
    former: list[str] = []
    for part in ("train", "dev", "test"):
        ids = [line.split("\t")[0] for line in (folder / part / "news.tsv").open()]
        assert set(former) < set(ids)
        shown = {item.split("-")[0] for row in columns(folder, part) for item in row[4].split()}
        assert shown <= set(ids)
        if former:
            # News of the day is shown.
            assert shown - set(former)
        former = ids
    assert len(ids) == 2608
    lines = sum(1 for _ in (folder / "train" / "news.tsv").open())
    assert lines / 2608 == pytest.approx(101_527 / 130_379, abs=0.03)


def test_a_skew_makes_few_articles_many_showings(like, tmp_path):
    def top_tenth(folder) -> float:
        shown = [item[:-2] for row in columns(folder, "train") for item in row[4].split()]
        counts = np.sort(np.unique(shown, return_counts=True)[1])[::-1]
        return float(counts[: len(counts) // 10].sum() / counts.sum())

    sizes = {"train_impressions": 700, "dev_impressions": 1, "test_impressions": 0, "users": 900}
    even = like_mind(0.02) | sizes | {"popularity_skew": 0.0}
    synthesize(WorldSettings(**even), tmp_path)
    assert top_tenth(like[0]) > 0.5 > 0.35 > top_tenth(tmp_path)


def test_sizes_follow_the_scale():
    assert like_mind()["train_impressions"] == 2_232_748
    assert like_mind(0.1)["train_impressions"] == 223_275
    settings = WorldSettings(**like_mind(0.1)).resolve()
    assert settings.max_history == 801 and settings.click_articles == settings.articles


def test_the_command(tmp_path, capsys):
    words = ["shards", "synthesize", "--out", str(tmp_path / "w")]
    few = ["--like", "mind", "--scale", "0.004", "--train-impressions", "40"]
    few += ["--dev-impressions", "20", "--test-impressions", "0", "--users", "50"]
    assert main([*words, *few]) == 0
    assert "train: 40 impressions" in capsys.readouterr().out
    assert not (tmp_path / "w" / "test").exists()
    for wrong, message in (
        (["--scale", "2"], "--scale multiplies the sizes of --like mind, which is not given"),
        (["--like", "mind", "--scale", "0"], "--scale is 0; it must be above 0 and at most 10"),
        (["--articles", "200", "--users", "5"], "--train-impressions is missing; give it"),
    ):
        assert main([*words, *wrong]) == UsageError.exit_code
        assert message in capsys.readouterr().err
