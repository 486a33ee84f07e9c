"""One cell of a column: each thing that ties data file, record and shard together, one by one."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles
from safetensors.numpy import save

from shards import cells
from shards.cells import (
    Cell,
    data_path,
    open_cell,
    read_record,
    record_path,
    tensor_places,
    write_cell,
)
from shards.errors import ColumnError, DamageError
from shards.files import sha256_file
from shards.manifest import ShardInfo

COLUMN = "c" * 64
VALUES = {"a": np.arange(6, dtype=np.float32).reshape(3, 2)}


@pytest.fixture
def shard(tmp_path: Path) -> ShardInfo:
    return make_articles(tmp_path / "set", 3).shards[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("column", "d" * 64),
        ("shard", "news-000009.tar"),
        ("shard_sha256", "e" * 64),
        ("rows", 4),
        ("bytes", 1),
        ("content", "f" * 64),
    ],
)
def test_a_record_that_differs_in_one_field_is_no_commit(
    tmp_path: Path, shard: ShardInfo, field: str, value: object
) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    assert read_record(tmp_path, COLUMN, shard) == record
    record_path(tmp_path, shard).write_text(json.dumps(asdict(record) | {field: value}))
    assert read_record(tmp_path, COLUMN, shard) is None


def test_a_content_that_is_no_hash_is_no_commit_though_both_files_have_it(
    tmp_path: Path, shard: ShardInfo
) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    payload = save(VALUES, metadata={"content": "../x"})
    data_path(tmp_path, shard).write_bytes(payload)
    named = asdict(record) | {"content": "../x", "bytes": len(payload)}
    record_path(tmp_path, shard).write_text(json.dumps(named))
    assert read_record(tmp_path, COLUMN, shard) is None


def test_content_is_names_types_shapes_and_bytes(tmp_path: Path, shard: ShardInfo) -> None:
    values = VALUES["a"]
    others = [{"b": values}, {"a": values.reshape(6)}, {"a": values + 1}, {"a": values.view("<i4")}]
    found = [write_cell(tmp_path, COLUMN, shard, one) for one in (VALUES, *others)]
    assert len({record.content for record in found}) == 5
    assert found[-1].sha256 == sha256_file(data_path(tmp_path, shard))
    assert found[-1].bytes == data_path(tmp_path, shard).stat().st_size


def test_the_record_comes_after_the_data(
    tmp_path: Path, shard: ShardInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        assert data_path(tmp_path, shard).is_file()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cells, "write_json_atomic", refuse)
    with pytest.raises(ColumnError, match="No space left"):
        write_cell(tmp_path, COLUMN, shard, VALUES)
    assert read_record(tmp_path, COLUMN, shard) is None


def test_a_data_file_that_is_not_the_records_is_damage(tmp_path: Path, shard: ShardInfo) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    for other in (replace(record, content="f" * 64), replace(record, crc32={"b": 0})):
        with pytest.raises(DamageError):
            Cell(tmp_path, shard, other)


def test_places_that_do_not_fit_are_damage(tmp_path: Path, shard: ShardInfo) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert tensor_places({"a": entry}, 16, "x")["a"].begin == 16
    for change in ({"shape": [3]}, {"data_offsets": [-8, 0]}, {"dtype": "F31"}):
        with pytest.raises(DamageError, match="tensor a cannot be read"):
            tensor_places({"a": entry | change}, 16, "x")
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    path = data_path(tmp_path, shard)
    data = path.read_bytes()
    cut = data.replace(b'"data_offsets":[0,24]', b'"data_offsets":[8,32]')
    assert cut != data
    path.write_bytes(cut)
    with pytest.raises(DamageError, match="beyond the end"):
        Cell(tmp_path, shard, record)


def test_a_mismatch_is_looked_at_again(
    tmp_path: Path, shard: ShardInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may replace both files between the reads of the one and the other."""
    write_cell(tmp_path, COLUMN, shard, VALUES)
    tried: list[int] = []

    def once(*words: object) -> Cell:
        tried.append(1)
        if len(tried) == 1:
            raise DamageError("mixed")
        return Cell(*words)

    monkeypatch.setattr(cells, "Cell", once)
    assert open_cell(tmp_path, COLUMN, shard) is not None
    assert len(tried) == 2
