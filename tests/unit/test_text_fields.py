"""Texts beyond title and body: what is stored, under which fingerprint, and what joins them."""

import argparse
import csv
import json
import re
import shlex

import numpy as np
import pytest
from helpers.corpora import write_json_lines
from helpers.rich import LIMITS, joined_ids, make_rich_articles, make_rich_world, rich_sample
from helpers.sets import make_articles, make_tokens

from shards.build import build_articles
from shards.cli_tokens import register
from shards.columns import describe
from shards.errors import ColumnError, UsageError
from shards.stats import compute_stats
from shards.text_fields import field_text
from shards.tokenize import tokenize_set
from shards.tokenizer import load_tokenizer
from shards.tokens import TokenColumn
from trainer.cli.main import main

ROWS = np.arange(40)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_rich_world(tmp_path_factory.mktemp("rich"))


def run(*words):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    return arguments.run(arguments)


@pytest.mark.parametrize(
    "parts",
    [
        [("title", 12)],
        [("category", 8)],
        [("title", 7), ("abstract", 16)],
        [("category", 3), ("abstract", 5), ("title", 12)],
        [("title", 12), ("abstract", 16), ("body", 33), ("category", 8)],
    ],
)
def test_joined_texts_are_those_put_together_token_by_token(world, parts):
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    rows = np.random.default_rng(0).permutation(ROWS)
    expected = [joined_ids(tokenizer, rich_sample(int(row)), parts) for row in rows]
    view = world.tokens.view(*parts)
    ids, mask = view.batch(rows)
    assert [i[: m.sum()].tolist() for i, m in zip(ids, mask, strict=True)] == expected
    assert view.lengths(rows).tolist() == [len(text) for text in expected]
    assert view.max_tokens == sum(limit for _, limit in parts) - (len(parts) - 1)
    # An article without a category is its special tokens alone, and there are such articles.
    assert ([2, 3] in expected) == (parts == [("category", 8)])


@pytest.mark.parametrize(
    ("sample", "text"),
    [
        ({"category": "sports", "subcategory": "football_nfl"}, "sports football nfl"),
        ({"category": "weather", "subcategory": "weather"}, "weather"),
        ({"category": "news"}, "news"),
        ({"subcategory": "newsus"}, "newsus"),
        ({"category": "tv_and_film", "subcategory": ""}, "tv and film"),
        ({}, ""),
    ],
)
def test_a_category_is_its_words(sample, text):
    assert field_text({"title": "x"} | sample, "category") == text


def test_the_default_column_is_what_it_was_before_there_were_more_fields(tmp_path):
    articles = make_articles(tmp_path / "a", 20, 8)
    column = make_tokens(articles, tmp_path / "t", title_tokens=9, body_tokens=20)
    before = {
        "format": 1,
        "tokenizer_sha256": column.tokenizer_sha256,
        "title_tokens": 9,
        "body_tokens": 20,
        "fields": ["title", "body"],
        "prefix_ids": [2],
        "suffix_ids": [3],
        "pad_id": 0,
        "vocab_size": column.vocab_size,
    }
    assert column.reader.made_from == before | {"shard_set": articles.fingerprint}
    assert column.fingerprint == describe(articles, "tokens", before).fingerprint


def test_a_column_stores_what_is_asked_for_whatever_the_order(tmp_path, world):
    articles = make_rich_articles(tmp_path / "a")
    tokenizer = world.tokens.tokenizer_dir
    first = tokenize_set(articles, tokenizer, fields=("category", "title"), title_tokens=9)
    again = tokenize_set(articles, tokenizer, fields=("title", "category"), title_tokens=9)
    assert first.folder == again.folder
    assert set(first.tensors) == {
        f"{field}.{part}" for field in ("title", "category") for part in ("values", "offsets")
    }
    assert "body_tokens" not in first.made_from
    assert TokenColumn(first).limits == {"title": 9, "category": 16}


@pytest.mark.parametrize("wanted", [("abstract", 20), ("title", 30)])
def test_the_message_has_the_command_that_repairs_it(tmp_path, world, wanted, capsys):
    articles = make_rich_articles(tmp_path / "a")
    tokenize_set(articles, world.tokens.tokenizer_dir, title_tokens=9, body_tokens=21)
    with pytest.raises(ColumnError) as caught:
        TokenColumn.open(articles).view(("body", 20), wanted)
    if wanted[0] == "abstract":
        assert "stores title and body, not the abstract" in str(caught.value)
    words = shlex.split(re.search("`(.*)`", str(caught.value))[1])
    assert words[:3] == ["tnr", "shards", "tokenize"]
    run(*words[2:])
    made = [
        TokenColumn.open(articles, folder.name) for folder in articles.columns_dir.glob("tokens-*")
    ]
    able = [column for column in made if column.problem(*wanted) is None]
    assert len(made) == 2 and len(able) == 1
    assert able[0].limits == {"title": 9, "body": 21} | dict([wanted])


def test_options_that_contradict_each_other(world, tmp_path):
    articles = make_rich_articles(tmp_path / "a")
    words = ["tokenize", articles.path, "--tokenizer", world.tokens.tokenizer_dir]
    for more, said in (
        (
            ["--fields", "title,entities"],
            "unknown field 'entities'; expected title, abstract, body and cat",
        ),
        (["--fields", "title,title"], "names title twice"),
        (["--fields", ","], "--fields names no field"),
        (["--abstract-tokens", "9"], "--fields title,body does not store the abstract"),
        (["--fields", "title,category", "--category-tokens", "2"], "--category-tokens is 2"),
    ):
        with pytest.raises(UsageError, match=said):
            run(*words, *more)
    assert not articles.columns_dir.exists()


def test_whoever_stores_a_text_twice_is_told(tmp_path, world, capsys):
    rows = [rich_sample(row) for row in range(20)]
    for row in rows:
        row.pop("body")
    built = build_articles([write_json_lines(tmp_path / "a.jsonl", rows)], tmp_path / "a").shard_set
    words = ["tokenize", built.path, "--tokenizer", world.tokens.tokenizer_dir]
    run(*words, "--fields", "title,abstract,category")
    said = capsys.readouterr().out
    assert "category: " in said and "abstract: " in said and "twice" not in said
    run(*words, "--fields", "title,abstract,body")
    assert "16 articles without a body have their abstract as body" in capsys.readouterr().out


def test_abstracts_and_categories_come_from_every_format(tmp_path, world):
    rows = [rich_sample(row) for row in range(20)]
    inputs = {"json": write_json_lines(tmp_path / "a.jsonl", rows)}
    names = ["id", "title", "body", "abstract", "category", "subcategory"]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    inputs["csv"] = tmp_path / "a.csv"
    (tmp_path / "mind").mkdir()
    columns = ["id", "category", "subcategory", "title", "abstract"]
    lines = ["\t".join([*(row.get(c, "") for c in columns), "", "", ""]) for row in rows]
    (tmp_path / "mind" / "news.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    inputs["mind"] = tmp_path / "mind"
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [{name: row.get(name) for name in names} for row in rows]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    inputs["parquet"] = tmp_path / "a.parquet"
    parts = [("title", 12), ("abstract", 16), ("category", 8)]
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    expected = [joined_ids(tokenizer, row, parts) for row in rows]
    for name, path in inputs.items():
        built = build_articles([path], tmp_path / f"set-{name}", keep_duplicates=True).shard_set
        reader = tokenize_set(
            built, world.tokens.tokenizer_dir, fields=("title", "abstract", "category")
        )
        ids, mask = TokenColumn(reader).view(*parts).batch(np.arange(20))
        found = [i[: m.sum()].tolist() for i, m in zip(ids, mask, strict=True)]
        assert found == expected, name


def test_stats_and_show_know_every_stored_field(world, capsys, monkeypatch):
    monkeypatch.setattr("trainer.cli.main.VERBS", (("shards.cli", "shards"),))
    stats = compute_stats(world.articles)
    assert stats.limits == {f"{field} tokens": limit for field, limit in LIMITS.items()}
    assert "(data.max_category_tokens)" in stats.table()
    assert "(data.max_abstract_tokens)" in stats.table()
    assert main(["shards", "show", str(world.articles.path), "0"]) == 0
    out = capsys.readouterr().out
    sample, end = json.JSONDecoder().raw_decode(out)
    assert sample == rich_sample(0)
    tokenizer = load_tokenizer(world.tokens.tokenizer_dir)
    ids = joined_ids(tokenizer, sample, [("category", 8)])
    shown = re.search(r"category: (\d+) tokens of at most 8\n.*\n +ids +([\d ]+)", out[end:])
    assert shown is not None and shown[2].split() == [str(i) for i in ids]
