"""Columns whose ``column.json`` was edited, with every hash over it made to fit again."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.sets import make_articles, make_tokens
from safetensors.numpy import load_file

from shards.cell_record import data_path
from shards.cells import write_cell
from shards.column_check import verify_column_folders
from shards.column_info import COLUMN_FILE, read_info
from shards.errors import DamageError
from shards.files import fingerprint, write_json_atomic
from shards.reader import ShardSet
from shards.tokens import TokenColumn


@pytest.fixture
def articles(tmp_path: Path) -> ShardSet:
    """A set with a token column."""
    articles = make_articles(tmp_path / "news", 20, 8)
    make_tokens(articles, tmp_path / "tokenizer")
    return articles


def forge(articles: ShardSet, changes: dict[str, Any]) -> Path:
    """Change what the token column was made from, as if it had been made so; its folder now."""
    (folder,) = articles.columns_dir.iterdir()
    info = read_info(folder)
    made_from = {**info.made_from, **changes}
    digest = fingerprint({"name": info.name, "made_from": made_from})
    values = {"name": info.name, "made_from": made_from, "fingerprint": digest}
    write_json_atomic(folder / COLUMN_FILE, json.loads(json.dumps(values)))
    for shard in articles.shards:
        tensors = load_file(data_path(folder, shard))
        write_cell(folder, digest, shard, tensors)
    return folder.rename(folder.with_name(f"{info.name}-{digest[:12]}"))


@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 1_000_000}, {"prefix_ids": []}, {"pad_id": 5}, {"format": 2}],
    ids=str,
)
def test_entries_that_the_tokenizer_tells_otherwise(
    articles: ShardSet, changes: dict[str, Any]
) -> None:
    assert verify_column_folders(articles)[0] == []
    folder = forge(articles, changes)
    problems, intact = verify_column_folders(articles)
    assert intact == []
    assert f"{folder / COLUMN_FILE} was edited: {next(iter(changes))} is" in problems[0]


@pytest.mark.parametrize("fields", [[], ["title", "title", "body"]])
def test_a_token_column_has_fields_and_each_once(articles: ShardSet, fields: list[str]) -> None:
    forge(articles, {"fields": fields})
    with pytest.raises(DamageError, match="does not describe a token column: its fields are"):
        TokenColumn.open(articles)
