"""One cell of a column: each thing that ties data file, record and shard together, one by one."""

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import make_articles
from safetensors.numpy import save

from shards import cells
from shards.cell_record import check_header, content_of, digest_of
from shards.cell_tensors import check_bound, check_offsets, header_bytes, parse_header, unlike
from shards.cells import (
    Cell,
    data_path,
    open_cell,
    read_record,
    record_path,
    write_cell,
)
from shards.errors import ColumnError, DamageError
from shards.files import sha256_file
from shards.manifest import ShardInfo

COLUMN = "c" * 64
ENTRY = {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}
VALUES = {"a": np.arange(6, dtype=np.float32).reshape(3, 2)}


def header(entries: dict[str, object]) -> bytes:
    """The beginning of a safetensors file."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


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


def test_the_digest_is_of_names_types_shapes_and_bytes() -> None:
    values = VALUES["a"]
    others = [{"b": values}, {"a": values.reshape(6)}, {"a": values + 1}, {"a": values.view("<i4")}]
    assert len({digest_of(one) for one in (VALUES, *others)}) == 5


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("d" * 64, {}),
        (COLUMN, {"name": "news-000009.tar"}),
        (COLUMN, {"sha256": "e" * 64}),
        (COLUMN, {"samples": 4}),
    ],
)
def test_a_whole_cell_of_another_column_or_shard_is_no_commit(
    tmp_path: Path, shard: ShardInfo, column: str, change: dict[str, object]
) -> None:
    """Both files fit each other, and lie where those of another cell belong."""
    other = replace(shard, **change)
    rows = np.zeros((other.samples, 2), np.float32)
    write_cell(tmp_path, column, other, {"a": rows})
    for path in (data_path, record_path):
        path(tmp_path, other).rename(path(tmp_path, shard))
    assert read_record(tmp_path, COLUMN, shard) is None


def test_a_cell_whose_tensors_do_not_fit_its_rows_is_no_commit(
    tmp_path: Path, shard: ShardInfo
) -> None:
    write_cell(tmp_path, COLUMN, shard, {"a": np.zeros((4, 2), np.float32)})
    assert read_record(tmp_path, COLUMN, shard) is None


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
    data = header({"a": entry})
    place = parse_header(data, "x").places["a"]
    assert (place.begin, place.end) == (len(data), len(data) + 8)
    for change in ({"shape": [3]}, {"data_offsets": [-8, 0]}, {"dtype": "F31"}):
        with pytest.raises(DamageError, match="tensor a"):
            parse_header(header({"a": entry | change}), "x")
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


@pytest.mark.parametrize(
    "change",
    [
        {"column": "d" * 64},
        {"shard": "news-000009.tar"},
        {"shard_sha256": "e" * 64},
        {"rows": 4},
        {"digest": "f" * 64},
        {"crc32": {"a": 1}},
    ],
)
def test_the_content_binds_each_part_of_the_record(
    tmp_path: Path, shard: ShardInfo, change: dict[str, object]
) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    found = parse_header(data_path(tmp_path, shard).read_bytes(), "x")
    assert content_of(record, found.places) == record.content
    edited = replace(record, **change)
    assert content_of(edited, found.places) != record.content
    with pytest.raises(DamageError, match="not the file that its commit record describes"):
        check_header("x", found, edited)
    with pytest.raises(DamageError, match="not the file that its commit record describes"):
        check_header("x", replace(found, content="f" * 64), record)


@pytest.mark.parametrize("change", [{"shape": [2, 3]}, {"dtype": "I32"}])
def test_the_content_binds_types_and_shapes(
    tmp_path: Path, shard: ShardInfo, change: dict[str, object]
) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    assert content_of(record, parse_header(header({"a": ENTRY}), "x").places) == record.content
    places = parse_header(header({"a": ENTRY | change}), "x").places
    assert content_of(record, places) != record.content


def test_a_header_beyond_its_limit_is_not_read() -> None:
    with pytest.raises(DamageError, match="1,048,577 bytes"):
        header_bytes(struct.pack("<Q", (1 << 20) + 1), "x")


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": {"shape": [2, 2], "data_offsets": [0, 16]}},
        {"a.values": {}},
        {"a.values": {}, "a.offsets": {"dtype": "I64", "shape": [3], "data_offsets": [24, 48]}},
        {"a.values": {}, "a.offsets": {"dtype": "I32", "shape": [4], "data_offsets": [24, 40]}},
    ],
)
def test_shapes_that_do_not_fit_the_rows_are_damage(tensors: dict[str, dict]) -> None:
    found = parse_header(header({name: ENTRY | one for name, one in tensors.items()}), "x")
    with pytest.raises(DamageError, match="does not fit the 3 rows"):
        found.check_shapes(3, "x")


@pytest.mark.parametrize("offsets", [[1, 2, 5], [0, 2, 4], [0, 6, 5]])
def test_offsets_that_do_not_rise_to_the_values_are_damage(offsets: list[int]) -> None:
    check_offsets("a", np.array([0, 2, 5]), 5, "x")
    with pytest.raises(DamageError, match="do not rise"):
        check_offsets("a", np.array(offsets), 5, "x")


@pytest.mark.parametrize("ids", [[-1, 3], [0, 4], [0.0, 1.0]])
def test_numbers_out_of_bounds_are_damage(ids: list[float]) -> None:
    check_bound("a", np.array([0, 3]), 4, "x")
    with pytest.raises(DamageError, match="from 0 to 3"):
        check_bound("a", np.array(ids), 4, "x")


def test_cells_of_another_type_or_width_are_told() -> None:
    places = parse_header(header({"a": ENTRY}), "x").places
    assert unlike(places, {"a": (np.dtype("<f4"), (2,))}) is None
    assert unlike(places, {"a": (np.dtype("<f2"), (2,))})
    assert unlike(places, {"a": (np.dtype("<f4"), (3,))})


def test_a_mapped_file_is_checked_as_it_was_opened(tmp_path: Path, shard: ShardInfo) -> None:
    """Bits flip, and the file is cut, after the cell was mapped."""
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    path = data_path(tmp_path, shard)
    whole, first, second = (Cell(tmp_path, shard, record, check=c) for c in (True, True, False))
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(DamageError, match="crc32"):
        first.array("a")
    assert second.array("a").shape == (3, 2)
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DamageError, match="was cut to 10 bytes"):
        whole.array("a")


def test_offsets_and_bounds_are_looked_at_when_first_touched(
    tmp_path: Path, shard: ShardInfo
) -> None:
    ids = np.array([1, 2, 9], dtype=np.int64)
    fell = {"a.offsets": np.array([0, 2, 1, 3]), "a.values": ids}
    record = write_cell(tmp_path, COLUMN, shard, fell)
    cell = Cell(tmp_path, shard, record, check=False, bounds={"a.values": 9})
    with pytest.raises(DamageError, match="do not rise"):
        cell.array("a.offsets")
    with pytest.raises(DamageError, match="from 0 to 8"):
        cell.array("a.values")


@pytest.mark.parametrize("field", ["digest", "sha256"])
def test_everything_is_hashed_by_verifying(tmp_path: Path, shard: ShardInfo, field: str) -> None:
    record = write_cell(tmp_path, COLUMN, shard, VALUES)
    cell = Cell(tmp_path, shard, record)
    cell.check_digest(record)
    with pytest.raises(DamageError, match=field if field == "sha256" else "hash of its tensors"):
        cell.check_digest(replace(record, **{field: "f" * 64}))
