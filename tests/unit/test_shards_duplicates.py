"""Duplicates: exact ones dropped and found again by click logs, near ones counted."""

import json
import random

import numpy as np
import pytest
from helpers.corpora import articles, news_line, refusals, write_json_lines, write_mind_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build import build_articles, build_impressions
from shards.cache import CacheSettings
from shards.duplicates import first_of_each, read_duplicates
from shards.errors import DamageError
from shards.near_duplicates import near_duplicates, signatures
from shards.reader import ShardSet
from shards.remote import Patience
from shards.verify import verify_set

TIME = "11/15/2019 8:55:22 PM"


def test_an_article_under_another_id_is_dropped_and_stands_for_the_first(tmp_path):
    rows = articles(6)
    # The same in other clothes: white space, an invisible character, another category.
    again = rows[2] | {"id": "X", "title": f"  {rows[2]['title']}\u200b ", "category": "other"}
    third = rows[2] | {"id": "Ü “3”"}
    changed = rows[2] | {"id": "Y", "body": rows[2]["body"] + "!"}
    first = write_json_lines(tmp_path / "a.jsonl", [*rows[:4], again, *rows[4:]])
    second = write_json_lines(tmp_path / "b.jsonl", [changed, rows[1], third])
    built = build_articles([first, second], tmp_path / "set", samples_per_shard=4).shard_set
    assert list(built) == [*rows, changed]
    counts = built.manifest.counts
    assert (counts["rows"], counts["written"], counts["repeated"]) == (10, 7, 1)
    assert counts["duplicate_content"] == 2
    assert built.manifest.refused == {}
    lines = (built.path / "duplicates.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "X", "row": 2, "source": "a.jsonl", "line": 5},
        {"id": "Ü “3”", "row": 2, "source": "b.jsonl", "line": 3},
    ]
    assert list(read_duplicates(built)) == [("X", 2), ("Ü “3”", 2)]

    kept = build_articles([first, second], tmp_path / "all", keep_duplicates=True).shard_set
    assert kept.num_rows == 9
    assert "duplicate_content" not in kept.manifest.counts
    assert not (kept.path / "duplicates.jsonl").exists()


def test_the_row_that_is_kept_is_counted_behind_those_that_are_not(tmp_path):
    rows = articles(5)
    same = [row | {"id": f"again {row['id']}"} for row in rows]
    mixed = [rows[0], same[0], rows[1], b"{", rows[2], rows[1], same[1], same[2], rows[3], same[3]]
    path = write_json_lines(tmp_path / "a.jsonl", mixed)
    built = build_articles([path], tmp_path / "set", max_refused=1.0).shard_set
    assert list(built) == rows[:4]
    assert dict(read_duplicates(built)) == {f"again N{n}": n for n in range(4)}
    assert refusals(built.path) == [("a.jsonl", 4, "bad JSON"), ("a.jsonl", 6, "duplicate id")]


def test_the_id_of_a_dropped_article_is_taken(tmp_path):
    rows = articles(2)
    dropped = rows[0] | {"id": "D"}
    first = write_json_lines(tmp_path / "a.jsonl", [rows[0], dropped])
    second = write_json_lines(tmp_path / "b.jsonl", [dropped, rows[1] | {"id": "D"}, rows[1]])
    built = build_articles([first, second], tmp_path / "set", max_refused=0.5).shard_set
    assert list(built) == rows
    counts = built.manifest.counts
    assert (counts["repeated"], counts["duplicate_content"]) == (1, 1)
    assert refusals(built.path) == [("b.jsonl", 2, "duplicate id")]


@pytest.mark.parametrize("damage", ["none", "changed", "missing"])
def test_clicks_on_a_dropped_article_find_the_one_that_was_kept(tmp_path, damage):
    news = [news_line(n) for n in range(4)]
    news.append(news_line(2).replace("N2\t", "N9\t"))
    log = [f"1\tU1\t{TIME}\tN9 N0\tN1-0 N9-1", f"2\tU2\t{TIME}\tN3\tN2-0 N9-1 N0-0"]
    folder = write_mind_folder(tmp_path / "mind", news, log)
    made = build_articles([folder], tmp_path / "set").shard_set
    assert made.num_rows == 4
    listed = made.path / "duplicates.jsonl"
    if damage == "changed":
        listed.write_text(listed.read_text().replace('"row": 2', '"row": 1'))
    elif damage == "missing":
        listed.unlink()
    problems = [str(problem) for problem in verify_set(made.path).problems]
    assert problems == [] if damage == "none" else "duplicates.jsonl: is missing" in problems[0]
    if damage != "none":
        with pytest.raises(DamageError, match=r"duplicates\.jsonl is missing or is not the file"):
            build_impressions([folder], made, tmp_path / "log")
        assert not (tmp_path / "log").exists()
        return
    built = build_impressions([folder], made, tmp_path / "log").shard_set
    assert [(s["history"], s["candidates"], s["clicks"]) for s in built] == [
        ([2, 0], [1, 2], [0, 1]),
        ([3], [2, 2, 0], [0, 1, 0]),
    ]


def test_the_file_of_a_set_elsewhere_is_checked_before_it_is_kept(tmp_path):
    rows = articles(2)
    path = write_json_lines(tmp_path / "a.jsonl", [rows[0], rows[0] | {"id": "D"}, rows[1]])
    made = build_articles([path], tmp_path / "set").shard_set
    cache = CacheSettings(str(tmp_path / "cache"), patience=Patience(attempts=1))
    there = ShardSet.open(made.path.as_uri(), cache=cache)
    listed = made.path / "duplicates.jsonl"
    whole = listed.read_bytes()
    listed.write_bytes(whole[:-5])  # as an answer that was cut off on its way
    with pytest.raises(DamageError, match=r"its sha256 is not the manifest's"):
        list(read_duplicates(there))
    listed.write_bytes(whole)
    assert list(read_duplicates(there)) == [("D", 0)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))))
def test_the_first_of_each(pairs):
    hashes = np.array(pairs, np.uint64).reshape(-1, 2)
    assert first_of_each(hashes).tolist() == [pairs.index(pair) for pair in pairs]


def text_of(rng: random.Random, words: int) -> list[str]:
    return [f"word{rng.randrange(5000)}" for _ in range(words)]


def edited(rng: random.Random, words: list[str], edits: int) -> list[str]:
    """Words with some replaced, each far from the others: four runs of four are lost by each."""
    words = list(words)
    step = len(words) // max(1, edits)
    for place in range(edits):
        words[place * step + rng.randrange(step)] = f"new{rng.randrange(10**6)}"
    return words


def share_found(words: int, edits: int) -> float:
    rng = random.Random(7)
    texts = [text_of(rng, words) for _ in range(200)]
    copies = [edited(rng, text, edits) for text in texts]
    joined = [" ".join(text) for text in texts + copies]
    found = near_duplicates(signatures(joined))
    assert not found[:200].any()
    return float(found[200:].mean())


def test_near_duplicates_are_told_from_other_texts():
    # Resemblance (n - 4e) / (n + 4e) of n runs and e edits: 1, 0.94, 0.72, 0.43.
    assert share_found(500, 0) == 1
    assert share_found(500, 4) == 1
    assert share_found(500, 20) < 0.15
    assert share_found(500, 50) == 0
    assert share_found(60, 0) == 1


def test_case_punctuation_and_order_of_articles():
    text = "The quick brown fox jumps over the lazy dog, again and again and again."
    loud = text.upper().replace(",", " --").replace(".", "!")
    texts = ["Something else altogether is here: nothing of it.", text, loud, "", "…", "", "fox"]
    found = near_duplicates(signatures(texts))
    assert found.tolist() == [False, False, True, False, False, False, False]
    # Texts of one chunk or of several, alone or beside others, have the same signatures.
    one_by_one = np.concatenate([signatures([text]) for text in texts])
    assert (one_by_one == signatures(texts)).all()
    many = signatures([*texts * 700, "x" * 10**6])
    assert (many[:7] == one_by_one).all()
    assert (many[-8:-1] == one_by_one).all()


def test_a_build_counts_near_duplicates_and_keeps_them(tmp_path):
    rng = random.Random(3)
    texts = [text_of(rng, 300) for _ in range(30)]
    rows = [{"id": str(n), "title": "t", "body": " ".join(text)} for n, text in enumerate(texts)]
    rows += [
        {"id": f"copy {n}", "title": "t", "body": " ".join(edited(rng, texts[n], 2))}
        for n in range(9)
    ]
    rows.append(rows[0] | {"id": "same"})
    path = write_json_lines(tmp_path / "a.jsonl", rows)
    built = build_articles([path], tmp_path / "set", near_duplicates=True).shard_set
    counts = built.manifest.counts
    assert (built.num_rows, counts["near_duplicates"], counts["duplicate_content"]) == (39, 9, 1)
    plain = build_articles([path], tmp_path / "plain").shard_set
    assert plain.fingerprint == built.fingerprint
    assert "near_duplicates" not in plain.manifest.counts
