"""Building impression sets from MIND's click logs."""

import numpy as np
import pytest
from helpers.corpora import articles, refusals, write_json_lines, write_mind_folder, zip_folder

from shards.build import build_articles, build_impressions
from shards.clicks import ClickColumn
from shards.errors import DataError, UsageError
from shards.mind import has_labels, iso_time
from shards.reader import ShardSet
from trainer.cli.main import main


@pytest.fixture
def article_set(tmp_path):
    path = write_json_lines(tmp_path / "a.jsonl", articles(10))
    return build_articles([path], tmp_path / "articles").shard_set


def write_log(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return path


TIME = "11/15/2019 8:55:22 PM"


def test_ids_become_rows_of_the_article_set(tmp_path, article_set):
    log = write_log(
        tmp_path / "behaviors.tsv",
        [
            f"1\tU1\t{TIME}\tN3 N99 N0\tN5-0 N7-1 N2-0",
            f"2\tU2\t{TIME}\t\tN1-1 N2-1\r",
            "3\tU1\tyesterday\tN98\tN9-1",
        ],
    )
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert list(built) == [
        {
            "id": "1",
            "user": "U1",
            "time": "2019-11-15T20:55:22",
            "history": [3, 0],
            "candidates": [5, 7, 2],
            "clicks": [0, 1, 0],
        },
        {
            "id": "2",
            "user": "U2",
            "time": "2019-11-15T20:55:22",
            "history": [],
            "candidates": [1, 2],
            "clicks": [1, 1],
        },
        {
            "id": "3",
            "user": "U1",
            "time": "yesterday",
            "history": [],
            "candidates": [9],
            "clicks": [1],
        },
    ]
    manifest = built.manifest
    assert (manifest.kind, manifest.labelled) == ("impressions", True)
    assert manifest.articles_fingerprint == article_set.fingerprint
    assert manifest.counts["unknown_history"] == 2
    assert manifest.refused == {}


def test_histories_that_are_newest_first_are_turned_round(tmp_path, article_set, capsys):
    old = [f"1\tU1\t{TIME}\tN3 N99 N0 N4\tN5-0 N7-1", f"2\tU2\t{TIME}\t\tN1-1 N2-0"]
    new = [f"1\tU1\t{TIME}\tN4 N0 N99 N3\tN5-0 N7-1", f"2\tU2\t{TIME}\t\tN1-1 N2-0"]
    first = build_impressions([write_log(tmp_path / "a.tsv", old)], article_set, tmp_path / "a")
    log = write_log(tmp_path / "b.tsv", new)
    words = ["--clicks", log, "--article-set", article_set.path, "--out", tmp_path / "b"]
    words = [str(word) for word in ["shards", "build", *words, "--history-order", "newest-first"]]
    assert main(words) == 0
    second = ShardSet.open(tmp_path / "b")
    assert list(first.shard_set) == list(second)
    # Who reads fewer clicks reads the newest, which both logs agree on.
    for built in (first.shard_set, second):
        assert ClickColumn.open(built).history(np.array([0, 1]), 2)[0].tolist() == [
            [0, 4],
            [-1] * 2,
        ]
    assert main(words) == 0 and "is already built" in capsys.readouterr().out
    assert main(words[:-2]) == 1  # the same log read the other way is another set
    assert "with other options" in capsys.readouterr().err


def test_sets_of_minds_order_are_what_they_were_before_the_option(tmp_path, article_set):
    log = write_log(tmp_path / "a.tsv", [f"1\tU1\t{TIME}\tN3\tN5-0 N7-1"])
    built = build_impressions(
        [log], article_set, tmp_path / "a", history_order="oldest-first", samples_per_shard=7
    )
    options = {"articles": article_set.fingerprint, "samples_per_shard": 7}
    assert built.shard_set.manifest.source["options"] == options
    with pytest.raises(UsageError, match="'random' is not one of oldest-first, newest-first"):
        build_impressions([log], article_set, tmp_path / "b", history_order="random")
    articles_alone = ["shards", "build", "--articles", str(log), "--out", str(tmp_path / "c")]
    assert main([*articles_alone, "--history-order", "newest-first"]) == 2


def test_bad_impressions_are_refused_one_by_one(tmp_path, article_set):
    good = [f"{n}\tU{n}\t{TIME}\tN1\tN2-0 N3-1" for n in range(50)]
    bad = {
        "unknown article": f"91\tU\t{TIME}\tN1\tN2-1 N77-0",
        "no click": f"92\tU\t{TIME}\tN1\tN2-0 N3-0",
        "no candidates": f"93\tU\t{TIME}\tN1\t",
        "bad click label": f"94\tU\t{TIME}\tN1\tN2-1 N3",
        "missing id": f" \tU\t{TIME}\tN1\tN2-1",
        "missing user": f"96\t\t{TIME}\tN1\tN2-1",
        "wrong number of columns": f"97\tU\t{TIME}\tN2-1",
        "duplicate id": good[7],
    }
    lines = [*good, *bad.values()]
    log = tmp_path / "log.tsv"
    log.write_bytes("\n".join(lines).encode() + b"\n\xff\tU\t\tN1\tN2-1\n")
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert built.num_rows == 50
    expected = [("log.tsv", 51 + place, reason) for place, reason in enumerate([*bad, "bad UTF-8"])]
    assert refusals(built.path) == expected


def test_a_log_without_labels(tmp_path, article_set):
    log = write_log(
        tmp_path / "behaviors.tsv", [f"1\tU1\t{TIME}\tN3\tN5 N7", f"2\tU1\t{TIME}\tN3\tN4"]
    )
    built = build_impressions([log], article_set, tmp_path / "set").shard_set
    assert not built.manifest.labelled
    assert [sample["candidates"] for sample in built] == [[5, 7], [4]]
    assert "clicks" not in built.manifest.fields


def test_labels_are_told_apart_from_ids_that_end_alike():
    rows = {"a-1": 0, "b-0": 1, "c": 2}
    assert has_labels(["1", "u", "", "", "a-1 b-0"], rows) is False
    assert has_labels(["1", "u", "", "", "a-1-0 b-0-1"], rows) is True
    assert has_labels(["1", "u", "", "", "c-1 x-0"], rows) is True
    assert has_labels(["1", "u", "", "", "x-1 y"], rows) is None
    assert has_labels(["1", "u", "c-1"], rows) is None


def test_the_click_column_is_written_with_the_set(tmp_path, article_set):
    log = write_log(
        tmp_path / "behaviors.tsv", [f"{n}\tU\t{TIME}\tN1\tN2-0 N3-1" for n in range(9)]
    )
    built = build_impressions([log], article_set, tmp_path / "set", samples_per_shard=4).shard_set
    clicks = ClickColumn.open(built)
    assert clicks.num_impressions == 9
    # A build that was stopped just before the column was written completes when it is repeated.
    for file in sorted(built.columns_dir.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    again = build_impressions([log], article_set, tmp_path / "set", samples_per_shard=4)
    assert again.already_built
    assert ClickColumn.open(again.shard_set).num_impressions == 9


def test_logs_of_several_parts_may_number_alike(tmp_path, article_set):
    line = f"1\tU1\t{TIME}\tN3\tN5-1 N7-0"
    folder = write_mind_folder(tmp_path / "train", [], [line])
    archive = zip_folder(write_mind_folder(tmp_path / "dev", [], [line]), tmp_path / "dev.zip")
    built = build_impressions([folder, archive], article_set.path, tmp_path / "set").shard_set
    assert [sample["id"] for sample in built] == ["1", "1"]
    names = [entry["name"] for entry in built.manifest.source["inputs"]]
    assert names == ["behaviors.tsv", "dev.zip/behaviors.tsv"]


def test_another_article_set_is_another_build(tmp_path, article_set):
    log = write_log(tmp_path / "behaviors.tsv", [f"1\tU1\t{TIME}\tN3\tN5-1 N7-0"])
    build_impressions([log], article_set, tmp_path / "set")
    path = write_json_lines(tmp_path / "b.jsonl", articles(11))
    other = build_articles([path], tmp_path / "other").shard_set
    with pytest.raises(DataError, match=r"built with other options \(articles\); ch"):
        build_impressions([log], other, tmp_path / "set")
    with pytest.raises(DataError, match="holds impressions, expected a set of articles"):
        build_impressions([log], tmp_path / "set", tmp_path / "set2")


def test_a_log_about_other_articles_fails(tmp_path, article_set):
    log = write_log(tmp_path / "behaviors.tsv", [f"1\tU1\t{TIME}\tX3\tX5-1 X7-0"])
    with pytest.raises(DataError, match=r"1 of 1 rows were refused.*unknown article 1"):
        build_impressions([log], article_set, tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("11/15/2019 12:05:00 AM", "2019-11-15T00:05:00"),
        ("2019-11-15T20:55:22", "2019-11-15T20:55:22"),
        ("13/45/2019 1:00:00 PM", "13/45/2019 1:00:00 PM"),
        ("", ""),
    ],
)
def test_times(text, expected):
    assert iso_time(text) == expected


@pytest.mark.data
def test_a_real_log_in_minds_layout(tmp_path, real_data):
    folder = real_data / "clicks-wikispeedia"
    parts = [folder / "train.zip", folder / "dev.zip"]
    made = build_articles(parts, tmp_path / "articles", bodies=folder / "bodies.jsonl.gz")
    assert made.shard_set.num_rows == made.shard_set.manifest.counts["repeated"] == 4604
    built = build_impressions([folder / "dev.zip"], made.shard_set, tmp_path / "dev").shard_set
    assert built.num_rows == 24_393
    assert built.manifest.refused == {}
    assert all(sum(sample["clicks"]) == 1 for sample in built.samples(0))
