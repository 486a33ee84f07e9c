"""Columns that were edited, with every hash over them made to fit again."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sets import make_articles, make_clicks, make_tokens
from safetensors.numpy import load_file

from shards.cell_record import data_path
from shards.cells import write_cell
from shards.clicks import ClickColumn
from shards.column_check import verify_column_folders
from shards.column_info import COLUMN_FILE, read_info
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import DamageError
from shards.files import fingerprint, write_json_atomic
from shards.manifest import ShardInfo
from shards.reader import ShardSet
from shards.tokens import TokenColumn

Tensors = dict[str, np.ndarray]


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


def rewrite(folder: Path, shards: Sequence[ShardInfo], change: Callable[[Tensors], object]) -> None:
    """Change the tensors of cells, as if they had been written so."""
    digest = read_info(folder).fingerprint
    for shard in shards:
        tensors = {
            name: array.copy() for name, array in load_file(data_path(folder, shard)).items()
        }
        change(tensors)
        write_cell(folder, digest, shard, tensors)


def test_tokens_that_are_no_row_of_ids(articles: ShardSet) -> None:
    (folder,) = articles.columns_dir.iterdir()

    def two_dimensions(tensors: Tensors) -> None:
        tensors["title.values"] = tensors["title.values"].reshape(-1, 1)

    rewrite(folder, articles.shards, two_dimensions)
    with pytest.raises(DamageError, match=r"title.values is uint16\[1\], expected whole numbers"):
        TokenColumn.open(articles)
    assert "title holds uint16" in verify_column_folders(articles)[0][0]


def test_cells_that_are_unlike_each_other_and_rows_that_were_not_skipped(
    articles: ShardSet,
) -> None:
    (folder,) = articles.columns_dir.iterdir()

    def wider(tensors: Tensors) -> None:
        tensors["title.values"] = tensors["title.values"].astype(np.uint64)

    def skipped(tensors: Tensors) -> None:
        tensors["skipped"] = np.ones(len(tensors["title.offsets"]) - 1, bool)

    rewrite(folder, articles.shards[1:2], wider)
    rewrite(folder, articles.shards[2:], skipped)
    (unlike, marked), _ = verify_column_folders(articles)
    assert "the values of title.values are uint64[], those of other cells uint16[]" in unlike
    assert "row 0 of the shard is marked as skipped, but has a title" in marked


def test_a_click_column_says_users_and_times_of_the_samples(
    articles: ShardSet, tmp_path: Path
) -> None:
    clicks = make_clicks(tmp_path / "log", articles, 12, samples_per_shard=4)
    log, folder = clicks.reader.shard_set, clicks.reader.folder
    assert verify_column_folders(log)[0] == []

    rewrite(folder, log.shards[:1], lambda tensors: tensors["user"].__setitem__(0, 7))
    rewrite(folder, log.shards[1:2], lambda tensors: tensors["time"].__setitem__(0, -5))
    rewrite(folder, log.shards[2:], lambda tensors: tensors.pop("user"))
    problems, _ = verify_column_folders(log)
    assert [re.findall(r": (\w+) differs from the samples", one) for one in problems] == [
        ["user"],
        ["time"],
        ["user"],
    ]


def test_times_that_are_no_whole_numbers(articles: ShardSet, tmp_path: Path) -> None:
    reader = make_clicks(tmp_path / "log", articles, 12, samples_per_shard=4).reader

    def no_times(tensors: Tensors) -> None:
        tensors["time"] = np.full(len(tensors["time"]), np.nan)

    rewrite(reader.folder, reader.shard_set.shards, no_times)
    with pytest.raises(DamageError, match="time is float64, expected whole numbers, one each"):
        ClickColumn.open(ShardSet.open(reader.shard_set.path))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (np.zeros((8, 3), np.float16), r"body is float16\[3\], expected float16\[2\]"),
        (np.zeros((8, 2), np.int8), r"body is int8\[2\], expected float16\[2\]"),
        (np.zeros((8, 1, 2), np.float16), r"body is float16\[1, 2\], expected float16\[2\]"),
        (np.zeros(8, np.float16), r"body is float16\[\], expected float16\[2\]"),
        (None, "tensor body is missing"),
    ],
)
def test_a_teachers_vectors_are_what_its_column_says(
    tmp_path: Path, body: np.ndarray | None, said: str
) -> None:
    articles = make_articles(tmp_path / "news", 8, 8)
    made_from = {"model_settings": {"news_dim": 2}, "dtype": "float16"}
    writer = ColumnWriter(articles, "teacher-text", made_from)
    vectors = np.zeros((8, 2), np.float16)
    writer.write(0, {"title": vectors, "body": vectors})
    assert ColumnReader.open(articles, "teacher-text").tensors and verified(articles) == []

    def change(tensors: Tensors) -> None:
        del tensors["body"]
        tensors.update({} if body is None else {"body": body})

    rewrite(writer.folder, articles.shards, change)
    with pytest.raises(DamageError, match=said):
        ColumnReader.open(articles, "teacher-text")
    assert re.search(said, verified(articles)[0])


def verified(articles: ShardSet) -> list[str]:
    return verify_column_folders(articles)[0]
