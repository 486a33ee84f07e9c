"""Faults in column sets: killed and competing writers, bad values, changed sets, replaced files."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.sets import article_texts, make_articles

import shards.cells
from shards.column_check import verify_column_folders, verify_columns
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import ColumnError, DamageError

ROWS, PER_SHARD = 20, 5
MADE_FROM = {"weights": "abc"}
REPOSITORY = Path(__file__).parents[2]


def tensors_of(shard_set, shard, shift=0.0):
    rows = np.array(shard_set.rows_of(shard), dtype=np.float32)
    return {"vector": rows[:, None] + np.arange(4, dtype=np.float32) + np.float32(shift)}


def fill(shard_set, shift=0.0):
    writer = ColumnWriter(shard_set, "teacher-v", MADE_FROM)
    for shard in writer.missing():
        writer.write(shard, tensors_of(shard_set, shard, shift))
    return writer


def all_rows(reader):
    return reader.gather("vector", np.arange(reader.num_rows))[:, 0].tolist()


@pytest.fixture
def articles(tmp_path):
    return make_articles(tmp_path / "articles", ROWS, PER_SHARD)


WRITER = """
import sys
sys.path[:0] = [{repository!r}, {tests!r}]
import numpy as np
from shards.columns import ColumnWriter
from shards.reader import ShardSet
from faults.test_columns_faults import tensors_of
shard_set = ShardSet.open({path!r})
writer = ColumnWriter(shard_set, "teacher-v", {made_from!r})
print("ready", flush=True)
sys.stdin.readline()
for shard in range(4):
    writer.write(shard, tensors_of(shard_set, shard, float(sys.argv[1])))
"""


def start_writer(shard_set, shift):
    script = WRITER.format(
        repository=str(REPOSITORY),
        tests=str(REPOSITORY / "tests"),
        path=str(shard_set.path),
        made_from=MADE_FROM,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(shift)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_fill_the_same_cells(articles):
    """E1: the values of either, never a mixture, and all of it verifies."""
    writers = [start_writer(articles, shift) for shift in (0.0, 0.5)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(30) for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdin.close()
        writer.stdout.close()
    fill(articles)  # a cell whose two files got mixed counts as missing, and is written again
    reader = ColumnReader.open(articles, "teacher-v", MADE_FROM)
    assert verify_columns(reader) == []
    for shard in range(4):
        cell = reader.cell(shard)["vector"]
        either = [tensors_of(articles, shard, shift)["vector"] for shift in (0.0, 0.5)]
        assert any((cell == expected).all() for expected in either)
    assert not list(reader.folder.glob(".*"))


def test_data_of_one_writer_under_the_record_of_another_is_not_trusted(articles):
    """E1: killed between its two renames, the second writer leaves a cell that is written again."""
    writer = fill(articles)
    data = writer.folder / "news-000001.safetensors"
    record = (writer.folder / "news-000001.json").read_bytes()
    shards.cells.write_cell(
        writer.folder, writer.info.fingerprint, articles.shards[1], tensors_of(articles, 1, 0.5)
    )
    assert data.stat().st_size == json.loads(record)["bytes"]
    (writer.folder / "news-000001.json").write_bytes(record)
    assert writer.missing() == [1]
    with pytest.raises(ColumnError, match=r"1 of 4 shards have no committed cell.*news-000001"):
        ColumnReader.open(articles, "teacher-v")
    fill(articles)
    assert all_rows(ColumnReader.open(articles, "teacher-v")) == list(range(ROWS))


def test_of_writers_whose_values_differ_the_last_leaves_a_committed_cell(articles, monkeypatch):
    """E1: data of the first, data of the second, record of the second, record of the first."""
    writer = ColumnWriter(articles, "teacher-v", MADE_FROM)
    real = shards.cells.write_json_atomic
    written, second_done = threading.Event(), threading.Event()

    def late(path, values):
        if threading.current_thread() is not threading.main_thread() and not second_done.is_set():
            written.set()
            assert second_done.wait(10)
        real(path, values)

    monkeypatch.setattr(shards.cells, "write_json_atomic", late)
    first = threading.Thread(target=writer.write, args=(1, tensors_of(articles, 1)))
    first.start()
    assert written.wait(10)
    writer.write(1, tensors_of(articles, 1, 0.5))
    second_done.set()
    first.join()
    assert writer.missing() == [0, 2, 3]
    # One that never finds its own record beside its own data gives up with an error.
    monkeypatch.setattr("shards.columns.read_record", lambda *cell: None)
    monkeypatch.setattr("shards.columns._WAITS_S", (0.0, 0.0))
    with pytest.raises(ColumnError, match="others write it at the same time"):
        writer.write(0, tensors_of(articles, 0))


@pytest.mark.parametrize("moment", ["data", "record"])
def test_killed_while_writing(articles, moment):
    """E2: the cell being written is missing, the others stay, a second run completes it."""
    script = WRITER.format(
        repository=str(REPOSITORY),
        tests=str(REPOSITORY / "tests"),
        path=str(articles.path),
        made_from=MADE_FROM,
    )
    name = "news-000002.safetensors" if moment == "data" else "news-000002.json"
    wait_forever = f"""
import os, time, pathlib
replace = pathlib.Path.replace
def stop(self, target):
    if pathlib.Path(target).name == {name!r}:
        print("stopped", flush=True)
        time.sleep(60)
    return replace(self, target)
pathlib.Path.replace = stop
"""
    process = subprocess.Popen(
        [sys.executable, "-c", wait_forever + script, "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "stopped\n"
        os.kill(process.pid, signal.SIGKILL)
    writer = ColumnWriter(articles, "teacher-v", MADE_FROM)
    assert writer.missing() == [2, 3]
    assert list(writer.folder.glob(".*.tmp-*")), "the kill must have left its temporary file"
    with pytest.raises(ColumnError, match="2 of 4 shards have no committed cell"):
        ColumnReader.open(articles, "teacher-v")
    fill(articles)
    reader = ColumnReader.open(articles, "teacher-v")
    assert all_rows(reader) == list(range(ROWS))
    assert verify_columns(reader) == []


def test_full_disk(articles, monkeypatch):
    """E2: a clear error, no cell, nothing left behind; later the same call succeeds."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ColumnWriter(articles, "teacher-v", MADE_FROM)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ColumnError, match="No space left on device") as caught:
            writer.write(0, tensors_of(articles, 0))
    assert "news-000000.safetensors" in str(caught.value)
    assert writer.missing() == [0, 1, 2, 3]
    assert [path.name for path in writer.folder.iterdir()] == ["column.json"]
    writer.write(0, tensors_of(articles, 0))
    assert writer.is_committed(0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_row(articles, value):
    """E3: the rows are those of the set, not of the shard."""
    tensors = tensors_of(articles, 2)
    tensors["vector"][[1, 4], 2] = value
    writer = ColumnWriter(articles, "teacher-v", MADE_FROM)
    with pytest.raises(ColumnError, match=r"not finite in 2 rows: 11, 14; nothing was written"):
        writer.write(2, tensors)
    assert not writer.is_committed(2)


def test_float16_overflow_is_refused_by_row_of_ragged_values(articles):
    """E3: 70,000 does not fit into float16."""
    with np.errstate(over="ignore"):
        values = np.array([1, 2, 70_000, 4], dtype=np.float32).astype(np.float16)
    offsets = np.array([0, 2, 2, 3, 4, 4])
    writer = ColumnWriter(articles, "teacher-v", MADE_FROM)
    with pytest.raises(ColumnError, match=r"float16\) is not finite in 1 rows: 7; .*65504"):
        writer.write(1, {"scores.values": values, "scores.offsets": offsets})


def test_many_bad_rows_are_counted(tmp_path):
    shard_set = make_articles(tmp_path / "a", 12, 12)
    writer = ColumnWriter(shard_set, "teacher-v", MADE_FROM)
    with pytest.raises(ColumnError, match=r"in 12 rows: 0, 1, 2, 3, 4, 5, 6, 7 and 4 more"):
        writer.write(0, {"vector": np.full((12, 2), np.nan)})


@pytest.mark.parametrize("name", ["news-000001.safetensors", "news-000001.json"])
def test_missing_file_of_a_cell(articles, name):
    """E5."""
    writer = fill(articles)
    (writer.folder / name).unlink()
    with pytest.raises(ColumnError, match=r"1 of 4 shards .*news-000001.*run `the command"):
        ColumnReader.open(articles, "teacher-v")
    assert writer.missing() == [1]


@pytest.mark.parametrize("damage", ["empty", "text", "list", "field"])
def test_damaged_record_is_no_commit(articles, damage):
    writer = fill(articles)
    path = writer.folder / "news-000003.json"
    values = json.loads(path.read_text())
    content = {
        "empty": "",
        "text": "{not json",
        "list": "[]",
        "field": json.dumps({**values, "rows": str(values["rows"])}),
    }
    path.write_text(content[damage])
    assert writer.missing() == [3]


def test_cells_of_other_shards_in_swapped_places(articles):
    """E5: shuffled rows."""
    writer = fill(articles)
    for suffix in (".safetensors", ".json"):
        one, two = (writer.folder / f"news-00000{i}{suffix}" for i in (0, 1))
        spare = writer.folder / "spare"
        one.rename(spare)
        two.rename(one)
        spare.rename(two)
    assert writer.missing() == [0, 1]


def test_set_that_was_built_again_does_not_get_the_old_column(articles, tmp_path):
    """E5: same number of rows, one text changed."""
    old = fill(articles)
    texts = [article_texts(row) for row in range(ROWS)]
    texts[7] = ("Another title", "")
    rebuilt = make_articles(tmp_path / "rebuilt", ROWS, PER_SHARD, texts)
    rebuilt.columns_dir.mkdir()
    old.folder.rename(rebuilt.columns_dir / old.folder.name)
    for made_from in (None, MADE_FROM):
        with pytest.raises(
            ColumnError, match=r"shard_set is .*; run `the command that filled it"
        ) as caught:
            ColumnReader.open(rebuilt, "teacher-v", made_from)
        assert articles.fingerprint in str(caught.value)
        assert rebuilt.fingerprint in str(caught.value)
    fill(rebuilt, 1.0)
    assert all_rows(ColumnReader.open(rebuilt, "teacher-v"))[0] == 1.0


def test_truncated_cell(articles):
    """E5: another size than the record says."""
    writer = fill(articles)
    data = writer.folder / "news-000000.safetensors"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ColumnError, match="1 of 4"):
        ColumnReader.open(articles, "teacher-v")


@pytest.mark.parametrize("damage", ["cut", "missing", "header", "record"])
def test_a_committed_cell_that_lost_its_data_is_no_intact_one(articles, damage):
    """E5: a missing cell is damage only if it has a commit record."""
    writer = fill(articles)
    (writer.folder / "news-000001.safetensors").unlink()
    (writer.folder / "news-000001.json").unlink()
    (articles.columns_dir / ".nfs0000000000000001").touch()
    assert verify_column_folders(articles) == ([], [f"{writer.folder.name} (3 of 4 cells)"])
    data = writer.folder / "news-000002.safetensors"
    if damage == "missing":
        data.unlink()
    elif damage == "record":
        data.with_suffix(".json").write_text("{")
    else:
        content = data.read_bytes()
        data.write_bytes(content[:-4] if damage == "cut" else b"\xff" * 8 + content[8:])
    problems, intact = verify_column_folders(articles)
    assert intact == []
    assert len(problems) == 1 and "news-000002.json: this commit record" in problems[0]


def test_flipped_bit_is_found_by_verifying(articles):
    writer = fill(articles)
    data = writer.folder / "news-000002.safetensors"
    content = bytearray(data.read_bytes())
    content[-3] ^= 4
    data.write_bytes(content)
    problems = verify_columns(ColumnReader.open(articles, "teacher-v"))
    assert len(problems) == 1
    assert "news-000002.safetensors" in problems[0] and "checksum of vector" in problems[0]


def test_broken_header_is_no_commit(articles):
    writer = fill(articles)
    data = writer.folder / "news-000002.safetensors"
    content = bytearray(data.read_bytes())
    content[0:8] = (2**62).to_bytes(8, "little")
    data.write_bytes(content)
    assert writer.missing() == [2]


def test_reader_keeps_the_file_it_mapped_when_another_takes_its_place(articles):
    """E6: a new file by rename leaves the old data to those who read them."""
    writer = fill(articles)
    reader = ColumnReader.open(articles, "teacher-v")
    assert all_rows(reader) == list(range(ROWS))
    for shard in range(4):
        shards.cells.write_cell(
            writer.folder,
            writer.info.fingerprint,
            articles.shards[shard],
            tensors_of(articles, shard, 1),
        )
    assert all_rows(reader) == list(range(ROWS))
    assert all_rows(ColumnReader.open(articles, "teacher-v"))[0] == 1.0


def test_reader_survives_the_deletion_of_the_column(articles):
    """E6."""
    writer = fill(articles)
    reader = ColumnReader.open(articles, "teacher-v")
    reader.gather("vector", np.arange(5))
    for path in list(writer.folder.iterdir()):
        path.unlink()
    assert reader.gather("vector", np.arange(5)).shape == (5, 4)
    with pytest.raises(ColumnError, match="no longer exists"):
        reader.gather("vector", np.arange(5, 10))


@pytest.mark.parametrize("rows", [np.arange(4), np.arange(40) % 4])
def test_file_cut_in_place_under_the_map_is_an_error_and_not_a_bus_error(tmp_path, rows):
    """E6: some other program cuts the file; touching the lost pages would kill the process."""
    shard_set = make_articles(tmp_path / "a", 4, 4)
    writer = ColumnWriter(shard_set, "teacher-v", MADE_FROM)
    writer.write(0, {"vector": np.ones((4, 5000), np.float32)})
    reader = ColumnReader.open(shard_set, "teacher-v")
    reader.gather("vector", rows)
    os.truncate(writer.folder / "news-000000.safetensors", 1000)
    with pytest.raises(DamageError, match="was cut to 1000 bytes"):
        reader.gather("vector", rows)


def test_reading_while_another_process_writes(articles):
    """E6: until the last cell is committed a reader refuses; then it reads what was written."""
    writer = start_writer(articles, 0.0)
    with pytest.raises(ColumnError, match="4 of 4 shards have no committed cell"):
        ColumnReader.open(articles, "teacher-v")
    writer.stdin.write("go\n")
    writer.stdin.close()
    deadline = time.monotonic() + 30
    reader = None
    while reader is None and time.monotonic() < deadline:
        try:
            reader = ColumnReader.open(articles, "teacher-v")
        except ColumnError as error:
            assert "have no committed cell" in str(error)
    assert writer.wait(30) == 0
    writer.stdout.close()
    assert reader is not None and all_rows(reader) == list(range(ROWS))


def test_folder_that_cannot_be_written(articles):
    articles.columns_dir.write_text("a file where the folder should be")
    with pytest.raises(ColumnError, match="cannot make"):
        ColumnWriter(articles, "teacher-v", MADE_FROM)
