"""Rows E1 to E6 as a user meets them: ``tnr teachers cache``, and training with stored teachers.

Of bare columns, ``test_columns_faults.py`` shows the same.
"""

import errno
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import flat
from helpers.exports import rewrite
from helpers.process import one_thread
from helpers.sets import article_texts, make_articles
from helpers.teacher_columns import targets
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, make_world

import shards.cells
from shards.columns import ColumnWriter, describe
from shards.files import read_json, write_json_atomic
from shards.stream import Stream
from shards.tokenize import tokenize_set
from trainer.cli.main import main
from trainer.errors import DamageError
from trainer.export.folder import export_model, load_export
from trainer.tasks.build import build
from trainer.teacher_server.fill import FillRequest
from trainer.teacher_server.storage import DTYPES


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture
def teacher(world):
    return world.teacher("post_train", 0)


def cache_words(world, teacher, dtype="float16"):
    words = ["teachers", "cache", "--stage", "1", "--articles", world.articles.path]
    return [*map(str, words), "--dtype", dtype, "--models", teacher]


def train(world, teacher, name="run", **settings):
    """One run of two steps; its exit code."""
    given = TINY_MODEL | {
        "data.articles": world.articles.path,
        "teachers.models": teacher,
        "run.dir": world.folder / name,
        "run.max_steps": 2,
    }
    pairs = [word for key, value in (given | settings).items() for word in (f"--{key}", value)]
    return main(["train", "post_train_distill", *map(str, pairs)])


def folder_of(world, teacher):
    request = FillRequest(articles=world.articles, impressions=None)
    return describe(*targets(load_export(teacher), request)[0]).folder


def batch(world, teacher):
    """The student's data, and its first batch of rows."""
    data = build(world.config("post_train_distill", teachers__models=[teacher])).data
    return data, next(Stream(data.order, 8))


def refused(world, teacher, capsys, **settings):
    """What a run that must be refused says; it is one line, and no run folder is begun."""
    capsys.readouterr()
    assert train(world, teacher, "refused", **settings) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("tnr: error:") and "\n" not in said
    assert not (world.folder / "refused" / "checkpoints").exists()
    return said


def repair(said):
    """Run the command that a refusal names."""
    words = shlex.split(said.rpartition("Repair: tnr ")[2])
    assert words[:2] == ["teachers", "cache"]
    return main(words)


CALL = """
import sys
sys.path[:0] = [{root!r}]
{before}
from trainer.cli.main import main
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main({words!r}))
"""
STOP_AT = """
import pathlib, time
replace = pathlib.Path.replace
def stop(self, target):
    if pathlib.Path(target).name == "news-000001.json":
        print("stopped", flush=True)
        time.sleep(60)
    return replace(self, target)
pathlib.Path.replace = stop
"""


def start(words, before=""):
    """A command in another process, which begins when it is given a line."""
    script = CALL.format(root=str(ROOT), before=before, words=words)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=one_thread() | {"HF_HUB_OFFLINE": "1"},
        text=True,
    )


def test_e1_e2_two_tasks_on_the_same_cells_one_of_them_killed(world, teacher, capsys):
    """One of two is killed between the data and the record of a cell; a run is refused until the
    other, or the same command again, has completed the column."""
    words = cache_words(world, teacher)
    killed, other = start(words, STOP_AT), start(words)
    with killed, other:
        for process in (killed, other):
            assert process.stdout.readline() == "ready\n"
        killed.stdin.write("go\n")
        killed.stdin.flush()
        while (line := killed.stdout.readline()) != "stopped\n":
            assert line, "it ended before it could be killed"
        assert "1 of 3" not in (said := refused(world, teacher, capsys))
        assert "2 of 3 shards have no committed cell, the first is news-000001.tar" in said
        other.stdin.write("go\n")
        other.stdin.flush()
        os.kill(killed.pid, signal.SIGKILL)
        assert other.wait(120) == 0
    assert main(words) == 0
    assert main(["teachers", "verify", *words[2:]]) == 0
    assert "bytes intact" in capsys.readouterr().out
    assert train(world, teacher) == 0


def test_e2_full_disk(world, teacher, capsys, monkeypatch):
    """The cell is not committed, the message says so, and the same command completes it."""
    whole, real, calls = cache_words(world, teacher), shards.cells.atomic_file, []

    def full(path, *words):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *words)

    monkeypatch.setattr(shards.cells, "atomic_file", full)
    assert main(whole) == 1
    assert "No space left on device; the cell is not committed" in capsys.readouterr().err
    assert "2 of 3 shards" in refused(world, teacher, capsys)
    monkeypatch.undo()
    assert main(whole) == 0
    assert train(world, teacher) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_e3_a_teacher_that_says_nan_is_refused_in_every_dtype(world, teacher, dtype, capsys):
    model = load_export(teacher).load_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    broken = Path(teacher).with_name("broken")
    export_model(model, broken, None, read_json(Path(teacher) / "tnr.json"))
    assert main(cache_words(world, str(broken), dtype)) == 1
    said = capsys.readouterr().err
    assert "not finite in 16 rows: 0, 1, 2, 3, 4, 5, 6, 7 and 8 more; nothing was written" in said
    assert not list(world.articles.columns_dir.glob("teacher-*/news-*"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights_sha256", "0" * 64),
        ("tokenizer_sha256", "0" * 64),
        ("max_title_tokens", 9),
        ("max_body_tokens", 19),
        ("pad_to_max", True),
        ("model_settings.pooling", "mean"),
        ("model_settings.pooling_mask", False),
    ],
)
def test_e4_what_a_teacher_is_and_reads(world, teacher, field, value, capsys):
    """Every field of a teacher that decides its vectors is named when it differs."""
    assert main(cache_words(world, teacher)) == 0
    *outer, inner = field.split(".")
    before: list[object] = []

    def change(info):
        part = info[outer[0]] if outer else info
        before.append(part[inner])
        part[inner] = value

    rewrite(teacher, change)
    said = refused(world, teacher, capsys)
    named = {"weights_sha256": "teacher_weights_sha256"}.get(field, field)
    assert f"{named} is {before[0]!r} in the column, asked for {value!r}" in said
    assert f"Repair: tnr teachers cache --stage 1 --articles {world.articles.path}" in said
    assert said.endswith(f"--models {teacher}")


def test_e4_another_teacher_dtype_or_computation_is_mended_by_the_command_named(
    world, teacher, capsys
):
    assert main(cache_words(world, teacher)) == 0
    for name, value in (("dtype", "int8"), ("dtype", "float32"), ("compute", "bf16")):
        said = refused(world, teacher, capsys, **{f"teachers.{name}": value})
        assert f"{name} is '" in said and f"asked for '{value}'" in said
        assert repair(said) == 0
        assert train(world, teacher, f"run-{value}", **{f"teachers.{name}": value}) == 0
    torch.manual_seed(77)
    built = build(world.config("post_train", model__pooling="mean"))
    built.export(built.module.model, Path(teacher), {})
    said = refused(world, teacher, capsys)
    assert "teacher_weights_sha256 is " in said
    assert "model_settings.pooling is 'attention' in the column, asked for 'mean'" in said
    assert repair(said) == 0
    assert train(world, teacher) == 0


def test_e4_a_run_is_not_continued_with_other_teachers(world, teacher, capsys):
    """The same folder with another model in it: refused though its own columns are complete."""
    assert main(cache_words(world, teacher)) == 0
    assert train(world, teacher) == 0
    torch.manual_seed(77)
    built = build(world.config("post_train"))
    built.export(built.module.model, Path(teacher), {})
    assert main(cache_words(world, teacher)) == 0
    capsys.readouterr()
    assert train(world, teacher, **{"run.max_steps": 4}) == 1
    assert "teacher_column_0 had fingerprint" in capsys.readouterr().err


def test_e5_missing_cell_and_cells_of_other_rows(world, teacher, capsys):
    """A cell without its file, one of fewer rows, and two that changed places: none is trusted."""
    assert main(cache_words(world, teacher)) == 0
    folder = folder_of(world, teacher)
    (folder / "news-000002.safetensors").unlink()
    said = refused(world, teacher, capsys)
    assert "1 of 3 shards have no committed cell, the first is news-000002.tar" in said
    assert repair(said) == 0
    record = read_json(folder / "news-000001.json")
    write_json_atomic(folder / "news-000001.json", record | {"rows": record["rows"] - 1})
    assert "the first is news-000001.tar" in (said := refused(world, teacher, capsys))
    assert repair(said) == 0
    for end in ("safetensors", "json"):
        first, second = (folder / f"news-00000{n}.{end}" for n in (0, 1))
        first.rename(folder / "kept")
        second.rename(first)
        (folder / "kept").rename(second)
    assert "2 of 3 shards" in (said := refused(world, teacher, capsys))
    assert repair(said) == 0
    assert train(world, teacher) == 0


def test_e5_shuffled_rows_are_found_by_verify(world, teacher, capsys):
    """Under an intact header, only the checksums know."""
    words = cache_words(world, teacher)
    assert main(words) == 0
    path = folder_of(world, teacher) / "news-000001.safetensors"
    places = shards.cells.parse_header(path.read_bytes(), path).places
    content = bytearray(path.read_bytes())
    begin, end = places["title"].begin, places["title"].end
    rows = np.frombuffer(content[begin:end], np.float16).reshape(places["title"].shape)
    content[begin:end] = rows[::-1].tobytes()
    path.write_bytes(content)
    capsys.readouterr()
    assert main(["teachers", "verify", *words[2:]]) == 1
    said = capsys.readouterr().err
    assert f"{path}: the checksum of title is not" in said
    repair = said.split("delete news-000001.json and run `")[1].split("`")[0]
    path.with_suffix(".json").unlink()
    assert main(shlex.split(repair.replace("MODELS", teacher))[1:]) == 0
    assert main(["teachers", "verify", *words[2:]]) == 0


def test_e5_a_text_shard_that_was_built_again(world, teacher, capsys):
    """The same rows but one: the columns are of another set, by their fingerprint."""
    assert main(cache_words(world, teacher)) == 0
    texts = [article_texts(row) for row in range(world.articles.num_rows)]
    texts[20] = ("Another title", texts[20][1])
    rebuilt = make_articles(world.folder / "again", texts=texts)
    tokenize_set(rebuilt, world.folder / "tokenizer", title_tokens=12, body_tokens=40)
    old = next(world.articles.columns_dir.glob("teacher-text-*"))
    old.rename(rebuilt.columns_dir / old.name)
    settings = {"data.articles": rebuilt.path}
    said = refused(world, teacher, capsys, **settings)
    assert "shard_set is" in said and "articles is" in said
    assert repair(said) == 0
    assert train(world, teacher, **settings) == 0


def test_e6_reader_while_another_writes_and_a_file_replaced_under_the_map(world, teacher):
    """A batch made after every cell was replaced has the values of the files that were opened."""
    assert main(cache_words(world, teacher)) == 0
    data, rows = batch(world, teacher)
    before = flat(data.collate(rows).batch)
    request = FillRequest(articles=world.articles, impressions=None)
    writer = ColumnWriter(*targets(load_export(teacher), request)[0])
    for shard, info in enumerate(world.articles.shards):
        ones = np.ones((info.samples, 12), np.float16)
        writer.write(shard, {"title": ones, "body": ones}, replace=True)
    after = flat(data.collate(rows).batch)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    opened_now = batch(world, teacher)[0].collate(rows).batch
    assert (opened_now.teachers.titles[0] == 1).all()


def test_e6_a_file_cut_under_the_map_is_an_error_and_not_a_bus_error(world, teacher):
    assert main(cache_words(world, teacher)) == 0
    data, rows = batch(world, teacher)
    data.collate(rows)
    for path in folder_of(world, teacher).glob("*.safetensors"):
        os.truncate(path, 100)
    with pytest.raises(DamageError, match=r"was cut to 100 bytes while it was being read"):
        data.collate(rows)
