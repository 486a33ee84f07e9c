"""How teachers' outputs are stored: errors, zeros, what is refused, and the size formula."""

import numpy as np
import pytest
from helpers.sets import make_articles

from shards.column_extras import EMPTY, write_vector
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import ColumnError, DamageError
from trainer.teacher_server.kinds.clicks import read_empty
from trainer.teacher_server.storage import (
    DTYPES,
    gather_ragged_vectors,
    gather_vectors,
    quantise,
    ragged,
    restore,
    store,
    store_plain,
    vector_bytes,
)

ROWS, WIDTH = 20, 24


def vectors(seed=0, rows=ROWS):
    return np.random.default_rng(seed).normal(0, 3, (rows, WIDTH)).astype(np.float32)


def write(articles, made):
    writer = ColumnWriter(articles, "teacher-v", {"made": sorted(made(articles.rows_of(0)))})
    for shard in writer.missing():
        writer.write(shard, made(np.array(articles.rows_of(shard))))
    return ColumnReader.open(articles, "teacher-v")


@pytest.fixture
def articles(tmp_path):
    return make_articles(tmp_path / "articles", ROWS, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_come_back_within_the_precision_of_their_dtype(articles, dtype):
    exact = vectors()
    exact[3] = 0.0
    reader = write(articles, lambda rows: store("v", exact[rows], dtype))
    rows = np.array([7, 3, 19, 0, 7])
    read = gather_vectors(reader, "v", rows).astype(np.float32)
    allowed = {"float32": 0.0, "float16": 2**-11, "int8": 0.5 / 127 * 1.0001}[dtype]
    largest = np.abs(exact[rows]).max(axis=1, keepdims=True)
    assert (np.abs(read - exact[rows]) <= allowed * largest).all()
    assert (read[1] == 0).all()
    if dtype != "float32":
        assert (read != exact[rows]).any()


def test_the_formula_gives_the_bytes_of_the_tensors():
    for dtype in DTYPES:
        tensors = store("v", vectors(), dtype)
        assert sum(array.nbytes for array in tensors.values()) == ROWS * vector_bytes(WIDTH, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_row_in_every_dtype(articles, dtype, value):
    bad = vectors()
    bad[11, 4] = value
    with pytest.raises(ColumnError, match=r"not finite in 1 rows: 11;"):
        write(articles, lambda rows: store("v", bad[rows], dtype))


def test_int8_spends_its_range_on_every_row_whatever_its_size():
    exact = vectors() * np.logspace(-30, 30, ROWS, dtype=np.float32)[:, None]
    integers, scales = quantise(exact)
    assert (np.abs(integers.astype(int)).max(axis=1) == 127).all()
    largest = np.abs(exact).max(axis=1, keepdims=True)
    assert (np.abs(restore(integers, scales) - exact) <= 0.5 / 127 * 1.0001 * largest).all()


def test_int8_of_subnormal_rows_does_not_wrap_around():
    tiny = np.full((1, WIDTH), 2.5e-43, dtype=np.float32)  # a 127th of it rounds down a lot
    integers, scales = quantise(tiny)
    assert (integers == 127).all() and np.abs(restore(integers, scales) - tiny).max() < 1e-43


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_none_or_several_vectors(articles, dtype):
    counts = np.array([0, 2, 1, 0, 1] * 4)
    starts = np.concatenate([[0], np.cumsum(counts)])
    exact = vectors(rows=int(starts[-1]))

    def made(rows):
        rows = np.asarray(rows)
        begin, end = starts[rows[0]], starts[rows[-1] + 1]
        offsets = starts[rows[0] : rows[-1] + 2] - begin
        return ragged(store("v", exact[begin:end], dtype), offsets)

    reader = write(articles, made)
    rows = np.array([16, 1, 3, 4])
    expected = np.concatenate([exact[starts[r] : starts[r + 1]] for r in rows])
    read = gather_ragged_vectors(reader, "v", rows)
    assert read.shape == expected.shape == (5, WIDTH)
    np.testing.assert_allclose(read, expected, atol=0.5 / 127 * 1.0001 * np.abs(expected).max())


def test_scores_stay_in_float16_under_int8():
    scores = np.array([1.0, 70000.0], dtype=np.float32)
    assert store_plain(scores, "int8").dtype == np.float16
    assert np.isinf(store_plain(scores, "float16")[1])
    assert store_plain(scores, "float32")[1] == 70000.0


def test_an_empty_titles_vector_is_read_as_written_or_refused(tmp_path):
    articles = make_articles(tmp_path / "set", 4)
    vector_E = vectors(rows=1)[0, :6].astype(np.float16)
    write_vector(tmp_path, vector_E)
    path = tmp_path / EMPTY
    intact = path.read_bytes()
    read = read_empty(articles, tmp_path)
    assert read.dtype == np.float16 and (read == vector_E).all()
    damaged = [intact[:size] for size in range(len(intact))]
    for place in range(len(intact)):
        flipped = bytearray(intact)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(DamageError, match=r"empty.npy .*tnr teachers cache computes it again"):
            read_empty(articles, tmp_path)
    path.unlink()
    with pytest.raises(DamageError, match="No such file"):
        read_empty(articles, tmp_path)
