"""Column sets: what is written is what is gathered, and a reader says exactly why it refuses."""

import json

import numpy as np
import pytest
from helpers.sets import make_articles
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from shards.column_check import verify_columns
from shards.columns import ColumnReader, ColumnWriter, list_columns
from shards.errors import ColumnError, DamageError
from shards.ragged import join, pad, ranges

ROWS, PER_SHARD = 23, 5


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    return make_articles(tmp_path_factory.mktemp("columns") / "articles", ROWS, PER_SHARD)


def ragged_row(row):
    return [row * 100 + i for i in range(row % 4)]


def fill(shard_set, name="vectors", made_from=None, dtype=np.float32):
    writer = ColumnWriter(shard_set, name, made_from or {"weights": "abc", "max_tokens": 24})
    for shard in writer.missing():
        rows = np.array(shard_set.rows_of(shard))
        values, offsets = join([ragged_row(row) for row in rows], np.uint16)
        writer.write(
            shard,
            {
                "vector": (rows[:, None] * 10 + np.arange(3)).astype(dtype),
                "row": rows,
                "ids.values": values,
                "ids.offsets": offsets,
            },
        )
    return writer


@pytest.fixture(scope="module")
def reader(articles):
    fill(articles)
    return ColumnReader.open(articles, "vectors")


rows_lists = st.lists(st.integers(0, ROWS - 1), max_size=40)


@settings(deadline=None)
@given(rows=rows_lists)
def test_gather_takes_any_rows_in_any_order(reader, rows):
    vectors = reader.gather("vector", np.array(rows, dtype=np.int64))
    assert vectors.dtype == np.float32 and vectors.shape == (len(rows), 3)
    for row, vector in zip(rows, vectors, strict=True):
        assert vector.tolist() == [row * 10, row * 10 + 1, row * 10 + 2]


def test_scattered_rows_are_what_rows_of_whole_cells_are(reader):
    """A few rows are sliced out one by one, many are gathered a cell at a time."""
    rng = np.random.default_rng(0)
    many = rng.integers(0, reader.num_rows, 1000)
    for tensor in ("vector", "row"):
        gathered = reader.gather(tensor, many)
        for part in (many[:1], many[:2], many[:7], many[:0]):
            few = reader.gather(tensor, part)
            assert few.dtype == gathered.dtype
            assert few.flags.writeable
            np.testing.assert_array_equal(few, gathered[: len(part)])


@settings(deadline=None)
@given(rows=rows_lists, keep=st.integers(0, 5))
def test_gather_ragged_takes_all_the_first_or_the_last(reader, rows, keep):
    index = np.array(rows, dtype=np.int64)

    def split(values, offsets):
        return [part.tolist() for part in np.split(values, offsets[1:-1])] if rows else []

    expected = [ragged_row(row) for row in rows]
    assert split(*reader.gather_ragged("ids", index)) == expected
    assert split(*reader.gather_ragged("ids", index, first=keep)) == [r[:keep] for r in expected]
    last = [r[-keep:] if keep else [] for r in expected]
    assert split(*reader.gather_ragged("ids", index, last=keep)) == last
    assert reader.lengths("ids", index).tolist() == [len(r) for r in expected]


@settings(deadline=None)
@given(rows=rows_lists, first=st.none() | st.integers(0, 3))
def test_a_tensor_that_is_kept_gives_the_same(reader, rows, first):
    kept = ColumnReader.open(reader.shard_set, "vectors")
    kept.keep("ids")
    rows = np.array(rows, dtype=np.int64)
    for ours, theirs in zip(
        kept.gather_ragged("ids", rows, first=first),
        reader.gather_ragged("ids", rows, first=first),
        strict=True,
    ):
        assert ours.dtype == theirs.dtype and ours.tolist() == theirs.tolist()
    assert kept.lengths("ids", rows).tolist() == reader.lengths("ids", rows).tolist()
    with pytest.raises(IndexError, match=str(ROWS)):
        kept.gather_ragged("ids", np.array([ROWS]))
    with pytest.raises(ColumnError, match="no tensor"):
        kept.keep("words")


def test_any_safetensors_reader_reads_a_cell(reader, articles):
    tensors = load_file(reader.folder / "news-000001.safetensors")
    np.testing.assert_array_equal(tensors["row"], np.arange(5, 10))
    cell = reader.cell(1)
    assert set(cell) == set(tensors)
    for name, array in cell.items():
        np.testing.assert_array_equal(array, tensors[name])
        assert not array.flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint32, np.int64, np.bool_])
def test_every_dtype_survives(articles, dtype):
    fill(articles, f"as-{np.dtype(dtype).name}", dtype=dtype)
    reader = ColumnReader.open(articles, f"as-{np.dtype(dtype).name}")
    values = np.arange(ROWS)[:, None] * 10 + np.arange(3)
    expected = values.astype(dtype)
    np.testing.assert_array_equal(reader.gather("vector", np.arange(ROWS)), expected)
    assert verify_columns(reader) == []


def test_rows_that_are_not_there(reader):
    for row in (-1, ROWS):
        with pytest.raises(IndexError, match=f"the set has {ROWS}"):
            reader.gather("vector", np.array([0, row]))
        with pytest.raises(IndexError, match=f"the set has {ROWS}"):
            reader.gather_ragged("ids", np.array([row]))


def test_tensor_that_is_not_there(reader):
    with pytest.raises(ColumnError, match=r"no tensor 'vectr'; it has .*'vector'"):
        reader.gather("vectr", np.arange(2))
    with pytest.raises(ColumnError, match=r"no tensor 'vector.values'"):
        reader.gather_ragged("vector", np.arange(2))


def test_same_content_gives_the_same_bytes(tmp_path):
    folders = []
    for name in ("a", "b"):
        folders.append(fill(make_articles(tmp_path / name, 12, 5)).folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert len(names) == 7
    assert all((folders[0] / n).read_bytes() == (folders[1] / n).read_bytes() for n in names)


def test_committed_cells_are_left_alone(articles, reader):
    before = {p.name: p.stat().st_mtime_ns for p in reader.folder.iterdir()}
    writer = fill(articles)
    assert writer.missing() == [] and all(writer.is_committed(s) for s in range(5))
    writer.write(0, {"vector": np.zeros((5, 3), np.float32)})
    assert {p.name: p.stat().st_mtime_ns for p in reader.folder.iterdir()} == before


def test_missing_column_names_the_command(articles):
    with pytest.raises(ColumnError, match=r"no column 'tokens'; run `tnr shards tokenize"):
        ColumnReader.open(articles, "tokens")
    with pytest.raises(ColumnError, match="tnr teachers cache"):
        ColumnReader.open(articles, "teacher-text")


def test_difference_is_named_field_by_field(articles):
    stored = {"weights": "abc", "pooling": {"kind": "mean", "mask": True}, "lengths": (24, 512)}
    fill(articles, "teacher-text", stored)
    assert (
        ColumnReader.open(articles, "teacher-text", {**stored, "lengths": [24, 512]}).num_rows == 23
    )
    asked = {"weights": "abd", "pooling": {"kind": "mean", "mask": False}, "lengths": [24, 512]}
    with pytest.raises(ColumnError) as caught:
        ColumnReader.open(articles, "teacher-text", {**asked, "dtype": "float16"})
    message = str(caught.value)
    assert "weights is 'abc' in the column, asked for 'abd'" in message
    assert "pooling.mask is True in the column, asked for False" in message
    assert "dtype is absent in the column, asked for 'float16'" in message
    assert "lengths" not in message and "kind" not in message
    assert "tnr teachers cache" in message


@pytest.mark.parametrize("far", [{"a": 2, "b": 2, "c": 2}, {"a": 0, "b": 0, "c": 0}])
def test_the_column_that_differs_least_is_called_the_nearest(tmp_path, far):
    shard_set = make_articles(tmp_path / "a", 2, 2)
    near = fill(shard_set, "teacher-x", {"a": 1, "b": 1, "c": 1}).folder.name
    fill(shard_set, "teacher-x", far)
    with pytest.raises(ColumnError, match=f"The nearest is {near}: b is 1 in the column"):
        ColumnReader.open(shard_set, "teacher-x", {"a": 1, "b": 3, "c": 1})


def test_several_of_one_name_must_be_told_apart(articles):
    for weights in ("one", "two"):
        fill(articles, "several", {"weights": weights})
    infos = list_columns(articles, "several")
    with pytest.raises(ColumnError) as caught:
        ColumnReader.open(articles, "several")
    assert all(info.folder.name in str(caught.value) for info in infos) and len(infos) == 2
    for info in infos:
        opened = ColumnReader.open_folder(articles, info.folder.name)
        assert opened.made_from["weights"] == info.made_from["weights"]


@pytest.mark.parametrize(
    "name", ["nothing-000000000000", "../articles", ".", "../columns/{}", "{}/."]
)
def test_folder_that_is_no_column_is_refused(articles, reader, name):
    name = name.format(reader.folder.name)
    with pytest.raises(ColumnError):
        ColumnReader.open_folder(articles, name)


def test_changed_column_file_is_noticed(tmp_path):
    shard_set = make_articles(tmp_path / "a", 6, 5)
    folder = fill(shard_set).folder
    path = folder / "column.json"
    values = json.loads(path.read_text())
    values["made_from"]["weights"] = "other"
    path.write_text(json.dumps(values))
    with pytest.raises(DamageError, match="was changed"):
        ColumnReader.open_folder(shard_set, folder.name)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no tensor"),
        ({"x": np.zeros((4, 2))}, r"x has shape \(4, 2\), the shard has 5 rows"),
        ({"x": np.float32(1)}, r"x has shape \(\)"),
        ({"x.values": np.zeros(3)}, "x.values has no offsets"),
        ({"x.values": np.zeros(3), "x.offsets": np.array([0, 1, 2, 3])}, r"not int64\[6\]"),
        ({"x.values": np.zeros(3), "x.offsets": np.array([0, 1, 1, 1, 1, 2])}, "from 0 to 3"),
        ({"x.values": np.zeros(3), "x.offsets": np.array([0, 2, 1, 3, 3, 3])}, "offsets of x"),
    ],
)
def test_what_does_not_fit_the_shard_is_not_written(articles, tensors, message):
    writer = ColumnWriter(articles, "refused", {"test": message})
    with pytest.raises(ColumnError, match=message):
        writer.write(0, tensors)
    assert writer.missing() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b"])
def test_name_that_is_no_folder_name_is_refused(articles, name):
    with pytest.raises(ColumnError, match="column name"):
        ColumnWriter(articles, name, {})


def test_ragged_helpers():
    assert ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    values, offsets = join([[1, 2], [], [3]], np.int32)
    assert values.dtype == np.int32 and offsets.tolist() == [0, 2, 2, 3]
    assert pad(values, offsets, 3, 9).tolist() == [[1, 2, 9], [9, 9, 9], [3, 9, 9]]
    right = pad(values, offsets, 3, -1, right_aligned=True)
    assert right.tolist() == [[-1, 1, 2], [-1, -1, -1], [-1, -1, 3]]


def test_shards_verify_checks_the_columns_too(tmp_path, capsys) -> None:
    from helpers.sets import make_tokens

    from trainer.cli.main import main

    articles = make_articles(tmp_path / "set", 20)
    tokens = make_tokens(articles, tmp_path / "tokenizer")
    assert main(["shards", "verify", str(articles.path)]) == 0
    assert f"columns intact: {tokens.reader.folder.name}" in capsys.readouterr().out
    cell = sorted(tokens.reader.folder.glob("*.safetensors"))[0]
    content = bytearray(cell.read_bytes())
    content[-1] ^= 1
    cell.write_bytes(content)
    assert main(["shards", "verify", str(articles.path)]) == 1
    assert cell.stem in capsys.readouterr().err
