"""Edits of shard sets and columns that keep sizes and checksums: verify names each, readers too."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sets import make_articles, make_clicks, make_impressions, make_tokens
from helpers.world import TINY_MODEL
from safetensors.numpy import load_file, save_file

from shards.cells import write_cell
from shards.column_check import verify_column_folders
from shards.column_extras import read_vector, write_vector
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import ColumnError, DamageError, DataError
from shards.files import fingerprint, read_json, write_json_atomic
from shards.manifest import MANIFEST_NAME, read_manifest
from shards.reader import ShardSet
from shards.stats import compute_stats
from shards.tokenize import tokenize_set
from shards.tokens import TokenColumn
from shards.verify import verify_set
from trainer.cli.main import main
from trainer.recipes.load import from_settings
from trainer.tasks.registry import open_sources

Values = dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles with tokens, and a log."""
    home = tmp_path_factory.mktemp("built")
    articles = make_articles(home / "news", 20, 8)
    make_tokens(articles, home / "tokenizer")
    make_impressions(home / "log", articles, 12, 8)
    return home


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    """A copy of :func:`built`."""
    return Path(shutil.copytree(built, tmp_path / "sets"))


def edit(path: Path, change: Callable[[Values], object]) -> Values:
    """Change a JSON file, and return what it holds now."""
    values: Values = read_json(path)
    change(values)
    write_json_atomic(path, values)
    return values


def as_older(folder: Path, change: Callable[[Values], object] = lambda values: None) -> None:
    """Change a manifest of a version without checksum; its fingerprint is made to fit."""

    def with_fingerprint(values: Values) -> None:
        values.pop("checksum", None)
        change(values)
        named = {n: values[n] for n in ("format_version", "kind", "articles_fingerprint")}
        named["shards"] = [[s["samples"], s["sha256"]] for s in values["shards"]]
        values["fingerprint"] = fingerprint(named)

    edit(folder / MANIFEST_NAME, with_fingerprint)


def told(folder: Path) -> list[str]:
    """What verify says of a set that is not intact."""
    return list(map(str, verify_set(folder).problems))


@pytest.mark.parametrize(
    "change",
    [
        {"fields": ["body", "id", "text", "title"]},
        {"counts": {"written": 21}},
        {"refused": {"bad JSON": 1}},
        {"source": {"labelled": False}},
        {"samples": 21},
        {"later": 1},
        {"checksun": "0" * 64, "checksum": None},
    ],
)
def test_a_manifest_that_was_edited_is_refused(home: Path, change: Values) -> None:
    edit(home / "news" / MANIFEST_NAME, lambda values: values.update(change))
    with pytest.raises(DamageError, match=r"manifest\.json.* edited"):
        ShardSet.open(home / "news")


def test_a_checksum_binds_what_the_fingerprint_leaves_out(home: Path) -> None:
    def other_kind(values: Values) -> None:
        values["kind"], checksum = "articles", values["checksum"]
        as_older_values = {k: v for k, v in values.items() if k != "checksum"}
        named = {n: as_older_values[n] for n in ("format_version", "kind", "articles_fingerprint")}
        named["shards"] = [[s["samples"], s["sha256"]] for s in values["shards"]]
        values["fingerprint"], values["checksum"] = fingerprint(named), checksum

    edit(home / "log" / MANIFEST_NAME, other_kind)
    with pytest.raises(DamageError, match="was edited: its checksum is"):
        read_manifest(home / "log")


@pytest.mark.parametrize(
    ("which", "change", "said"),
    [
        ("news", {"fields": ["id", "title"]}, "fields are id, title; the samples have body, id"),
        ("news", {"kind": "impressions"}, "sample 0 is not a sample of a set of impressions"),
        ("news", {"counts": {"written": 21}}, r"counts\.written is 21, the set has 20 rows"),
        ("news", {"refused": {"bad JSON": 2}}, r"refused is {'bad JSON': 2}, refused\.jsonl lists"),
        ("log", {"kind": "articles"}, "sample 0 is not a sample of a set of articles"),
        ("log", {"source": {"labelled": False}}, "the manifest says a log without labels"),
    ],
)
def test_edits_of_a_manifest_without_a_checksum_are_found_in_the_samples(
    home: Path, which: str, change: Values, said: str
) -> None:
    as_older(home / which)
    assert verify_set(home / which).ok
    as_older(home / which, lambda values: values.update(change))
    if which == "log":
        shutil.rmtree(home / "log" / "columns")
    assert any(re.search(said, problem) for problem in told(home / which)), told(home / which)


def test_rows_that_the_article_set_does_not_have(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = make_articles(home / "few", 5)
    as_older(home / "log", lambda values: values.update(articles_fingerprint=few.fingerprint))
    shutil.rmtree(home / "log" / "columns")
    assert main(["shards", "verify", str(home / "log"), str(home / "few")]) == 1
    assert "of the article set, which has 5 rows" in capsys.readouterr().err


def test_verify_goes_on_after_a_set_that_cannot_be_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "news" / MANIFEST_NAME).write_text("{")
    assert main(["shards", "verify", str(home / "news"), str(home / "log")]) == 1
    out, err = capsys.readouterr()
    assert "does not hold JSON" in err and "log: 2 shards, 12 samples, all intact" in out


# Columns.

TEACHERS = ({"weights": "one"}, {"weights": "two"})
CELL = "news-000001"


def fill(articles: ShardSet, made_from: Values, shift: float = 0.0) -> ColumnWriter:
    writer = ColumnWriter(articles, "teacher-text", made_from)
    for shard in writer.missing():
        rows = np.array(articles.rows_of(shard), np.float32)[:, None] + np.float32(shift)
        title = np.repeat(rows, 3, axis=1)
        offsets = np.arange(len(rows) + 1)
        writer.write(shard, {"title": title, "ids.values": title, "ids.offsets": offsets})
    return writer


def problems(folder: Path) -> list[str]:
    return verify_column_folders(ShardSet.open(folder))[0]


def test_a_cell_of_another_teacher_whose_record_was_edited(home: Path) -> None:
    articles = ShardSet.open(home / "news")
    ours, theirs = (fill(articles, one, n).folder for n, one in enumerate(TEACHERS))
    for suffix in ("safetensors", "json"):
        shutil.copy(theirs / f"{CELL}.{suffix}", ours)
    column = read_json(ours / "column.json")["fingerprint"]
    edit(ours / f"{CELL}.json", lambda values: values.update(column=column))
    with pytest.raises(ColumnError, match=rf"1 of 3 shards have no committed cell.*{CELL}"):
        ColumnReader.open(articles, "teacher-text", TEACHERS[0])
    (said,) = problems(home / "news")
    assert (
        f"{CELL}.safetensors" in said
        and "do not belong together (" in said
        and "; run `tnr teachers" in said
    )


def test_a_cell_of_an_older_version_is_read_and_its_record_checked(home: Path) -> None:
    articles = ShardSet.open(home / "news")
    folder = fill(articles, TEACHERS[0]).folder
    record = read_json(folder / f"{CELL}.json")
    tensors = load_file(folder / f"{CELL}.safetensors")
    older = {k: v for k, v in record.items() if k != "digest"} | {"content": record["digest"]}
    save_file(tensors, folder / f"{CELL}.safetensors", metadata={"content": record["digest"]})
    data = (folder / f"{CELL}.safetensors").read_bytes()
    older |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_json_atomic(folder / f"{CELL}.json", older)
    reader = ColumnReader.open(articles, "teacher-text", TEACHERS[0])
    assert reader.gather("title", np.arange(20))[:, 0].tolist() == list(range(20))
    assert problems(home / "news") == []
    edit(folder / f"{CELL}.json", lambda values: values.update(content="0" * 64))
    assert problems(home / "news")


@pytest.mark.parametrize(
    "change",
    [
        {"column": "0" * 64},
        {"shard": "news-000002.tar"},
        {"shard_sha256": "0" * 64},
        {"rows": 7},
        {"bytes": 1},
        {"content": "0" * 64},
        {"sha256": "0" * 64},
        {"crc32": {"title": 1}},
        {"digest": "0" * 64},
        {"digest": None},
        {"rows": "8"},
        {"crc32": []},
        {"bytes": 10**400},
    ],
)
def test_every_edit_of_a_record_is_found(home: Path, change: Values) -> None:
    articles = ShardSet.open(home / "news")
    folder = fill(articles, TEACHERS[0]).folder
    edit(folder / f"{CELL}.json", lambda values: values.update(change))
    (said,) = problems(home / "news")
    assert CELL in said and "run `tnr teachers cache" in said


def edit_header(path: Path, change: Callable[[Values], object]) -> None:
    """Change the header of a safetensors file; its size and the data stay."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    path.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [24, 1]},
        {"shape": [8, 3], "dtype": "I32"},
        {"data_offsets": [0, 10**9]},
        {"shape": [-8, -3]},
        {"dtype": "BF16"},
        {"dtype": 3},
    ],
)
def test_every_edit_of_a_header_is_found(home: Path, change: Values) -> None:
    articles = ShardSet.open(home / "news")
    folder = fill(articles, TEACHERS[0]).folder
    path = folder / f"{CELL}.safetensors"
    edit_header(path, lambda header: header["title"].update(change))
    with pytest.raises(ColumnError, match=CELL):
        ColumnReader.open(articles, "teacher-text", TEACHERS[0])
    assert len(problems(home / "news")) == 1


def test_what_is_not_finite_is_found_where_checksums_fit(home: Path) -> None:
    articles = ShardSet.open(home / "news")
    writer = fill(articles, TEACHERS[0])
    tensors = dict(ColumnReader.open(articles, "teacher-text").cell(1))
    for name in ("title", "ids.values"):
        bad = tensors[name].copy()
        bad[5, 1] = np.nan
        shard = articles.shards[1]
        write_cell(writer.folder, writer.info.fingerprint, shard, {**tensors, name: bad})
        (said,) = problems(home / "news")
        assert f"{name} is not finite in 1 rows, the first is row 5 of the shard" in said


@pytest.mark.parametrize("offsets", [[0, 3, 2, *range(3, 9)], [0, *range(1, 8), 99], [-5] * 9])
def test_offsets_that_do_not_rise(home: Path, offsets: list[int]) -> None:
    articles = ShardSet.open(home / "news")
    writer = fill(articles, TEACHERS[0])
    tensors = dict(ColumnReader.open(articles, "teacher-text").cell(1))
    wrong = {**tensors, "ids.offsets": np.array(offsets[:9], np.int64)}
    write_cell(writer.folder, writer.info.fingerprint, articles.shards[1], wrong)
    unchecked = ShardSet.open(home / "news", check_columns=False)
    for shard_set in (articles, unchecked):
        reader = ColumnReader.open(shard_set, "teacher-text")
        for read in (reader.lengths, reader.gather_ragged):
            with pytest.raises(DamageError, match=rf"{CELL}.*ids.offsets do not rise from 0 to"):
                read("ids", np.arange(20))
    (said,) = problems(home / "news")
    assert "ids.offsets do not rise" in said


def test_cells_of_another_type_are_not_cast(home: Path) -> None:
    articles = ShardSet.open(home / "news")
    writer = fill(articles, TEACHERS[0])
    tensors = dict(ColumnReader.open(articles, "teacher-text").cell(1))
    tensors["title"] = tensors["title"].astype(np.float16)
    write_cell(writer.folder, writer.info.fingerprint, articles.shards[1], tensors)
    reader = ColumnReader.open(articles, "teacher-text")
    with pytest.raises(DamageError, match=rf"{CELL}.*title are float16\[3\], those of other cells"):
        reader.gather("title", np.arange(20))


def token_cell(home: Path, change: Callable[[dict[str, np.ndarray]], object]) -> TokenColumn:
    """Write a cell of the token column anew, with another content."""
    articles = ShardSet.open(home / "news")
    reader = ColumnReader.open(articles, "tokens")
    tensors = {name: array.copy() for name, array in reader.cell(1).items()}
    change(tensors)
    write_cell(reader.folder, reader.fingerprint, articles.shards[1], tensors)
    return TokenColumn.open(articles)


def test_a_token_id_beyond_the_vocabulary(home: Path) -> None:
    tokens = token_cell(home, lambda tensors: tensors["title.values"].__setitem__(0, 60_000))
    with pytest.raises(DamageError, match=rf"title of row 8 \({CELL}.*id 60000.* `tnr shards tok"):
        tokens.batch("title", np.arange(20), 12)
    assert tokens.batch("title", np.arange(8), 12)[0].shape[0] == 8
    (said,) = problems(home / "news")
    assert "title holds uint16 up to 60000, expected token ids below" in said


@pytest.mark.parametrize("damage", ["id", "bit"])
def test_training_refuses_damaged_tokens_in_one_line(
    home: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "id":
        token_cell(home, lambda tensors: tensors["title.values"].__setitem__(0, 60_000))
    else:
        flip(ColumnReader.open(ShardSet.open(home / "news"), "tokens").folder, "title.values")
    given = {
        **TINY_MODEL,
        "data.articles": home / "news",
        "run.dir": home / "run",
        "run.max_steps": 5,
        "run.copies.rule": "none",
    }
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", "post_train", *words]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and CELL in err and "`tnr shards tokenize" in err
    assert sum(line.startswith("tnr: error: ") for line in err.splitlines()) == 1


def test_texts_that_are_longer_than_the_column_says(home: Path) -> None:
    def longer(tensors: dict[str, np.ndarray]) -> None:
        tensors["title.values"] = np.ones(100, np.uint16)
        tensors["title.offsets"] = np.array([0] * 8 + [100])

    token_cell(home, longer)
    (said,) = problems(home / "news")
    assert "a text of title has 102 tokens, expected at most 12" in said


@pytest.mark.parametrize("what", ["edited", "missing", "folder", "fifo"])
def test_a_tokenizer_that_is_not_the_one_of_the_column(home: Path, what: str) -> None:
    articles = ShardSet.open(home / "news")
    folder = ColumnReader.open(articles, "tokens").folder
    path = folder / "tokenizer" / "tokenizer_config.json"
    if what == "edited":
        path.write_bytes(path.read_bytes() + b"\n")
    elif what == "folder":
        shutil.rmtree(path.parent)
    else:
        path.unlink()
        if what == "fifo":
            os.mkfifo(path)
    with pytest.raises(ColumnError, match=r"tokenizer.* run `tnr shards tokenize .*TOKENIZER"):
        TokenColumn.open(articles)
    (said,) = problems(home / "news")
    assert "tokenizer" in said and "TOKENIZER" in said and "run `tnr shards tokenize" in said
    assert f"--tokenizer {folder}" not in said  # the one that was just refused
    assert "in words: " in (shown := compute_stats(home / "news").table()) and "TOKENIZER" in shown


def test_a_tokenizer_of_a_column_without_its_checksums(home: Path) -> None:
    """Older columns have none: what the tokenizer does is compared."""
    articles = ShardSet.open(home / "news")
    folder = ColumnReader.open(articles, "tokens").folder
    (folder / "tokenizer.sha256").unlink()
    assert TokenColumn.open(articles).vocab_size and problems(home / "news") == []
    tokenize_set(articles, home / "tokenizer", title_tokens=12, body_tokens=40)
    assert (folder / "tokenizer.sha256").is_file()
    (folder / "tokenizer.sha256").unlink()
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase"', '"strip"').replace("[MASK]", "[MUSK]"))
    (said,) = problems(home / "news")
    assert "tokenizer" in said
    with pytest.raises(ColumnError, match="is not the tokenizer that the column was made with"):
        tokenize_set(articles, home / "tokenizer", title_tokens=12, body_tokens=40)


def test_a_click_column_is_what_the_samples_say(home: Path) -> None:
    impressions = ShardSet.open(home / "log")
    reader = ColumnReader.open(impressions, "clicks")
    tensors = {name: array.copy() for name, array in reader.cell(1).items()}
    tensors["candidates.values"][0] += 1
    write_cell(reader.folder, reader.fingerprint, impressions.shards[1], tensors)
    (said,) = problems(home / "log")
    assert "candidates.values differs from the samples of impressions-000001.tar" in said


@pytest.mark.parametrize("row", [-1, 20])
def test_clicks_on_articles_that_are_not_there(home: Path, row: int) -> None:
    clicks = make_clicks(home / "other", ShardSet.open(home / "news"), 12, samples_per_shard=8)
    impressions = clicks.reader.shard_set
    tensors = {name: array.copy() for name, array in clicks.reader.cell(1).items()}
    tensors["history.values"][0] = row
    write_cell(clicks.reader.folder, clicks.fingerprint, impressions.shards[1], tensors)
    opened = type(clicks).open(ShardSet.open(impressions.path, check_columns=False), 20)
    with pytest.raises(DamageError, match=rf"history.values holds int32 from .*{row}"):
        opened.history(np.arange(12), 5)


def test_the_vector_of_an_empty_title_belongs_to_its_column(tmp_path: Path) -> None:
    for name in ("teacher-news-aaaaaaaaaaaa", "teacher-news-bbbbbbbbbbbb"):
        (tmp_path / name).mkdir()
        write_vector(tmp_path / name, np.arange(3, dtype=np.float16))
    assert read_vector(tmp_path / name).tolist() == [0, 1, 2]
    shutil.copy(tmp_path / name / "empty.npy", tmp_path / "teacher-news-aaaaaaaaaaaa")
    with pytest.raises(DamageError, match=r"empty\.npy has no checksum \(crc32\), or a wrong one"):
        read_vector(tmp_path / "teacher-news-aaaaaaaaaaaa")


# What is checked when it is first touched.


def flip(folder: Path, tensor: str, cell: str = CELL) -> None:
    """Flip a bit in a tensor of a cell."""
    path = folder / f"{cell}.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    data[8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]] ^= 1
    path.write_bytes(data)


READS: dict[str, Callable[[ColumnReader], object]] = {
    "all": lambda reader: reader.gather("title", np.arange(20)),
    "scattered": lambda reader: reader.gather("title", np.array([0, 8, 19])),
    "one": lambda reader: reader.gather("title", np.array([9])),
    "ragged": lambda reader: reader.gather_ragged("ids", np.array([9, 0])),
    "lengths": lambda reader: reader.lengths("ids", np.array([9, 0])),
    "kept": lambda reader: reader.keep("ids"),
    "cell": lambda reader: [reader.cell(1)["title"], reader.cell(1)["ids.values"]],
}
TOUCHED = {"ragged": "ids.values", "lengths": "ids.offsets", "kept": "ids.values"}


@pytest.mark.parametrize("way", READS)
def test_flipped_bits_are_named_at_the_first_touch(home: Path, way: str) -> None:
    folder = fill(ShardSet.open(home / "news"), TEACHERS[0]).folder
    tensor = TOUCHED.get(way, "title")
    flip(folder, tensor)
    reader = ColumnReader.open(ShardSet.open(home / "news"), "teacher-text")
    assert len(reader.gather("title", np.arange(3))) == 3  # of another cell
    said = rf"{CELL}\.safetensors: the checksum \(crc32\) of {tensor}, of shard {CELL}\.tar.*"
    with pytest.raises(DamageError, match=rf"{said}delete {CELL}\.json and run `tnr teachers"):
        READS[way](reader)
    if tensor.endswith(("values", "title")):
        unchecked = ShardSet.open(home / "news", check_columns=False)
        READS[way](ColumnReader.open(unchecked, "teacher-text"))


@pytest.mark.parametrize("check", [True, False])
def test_the_setting_reaches_every_column_of_a_run(home: Path, check: bool) -> None:
    config = from_settings(
        {
            "task": "finetune",
            **TINY_MODEL,
            "data.articles": str(home / "news"),
            "data.clicks": str(home / "log"),
            "data.check_columns": check,
        },
        where="test",
    )
    flip(ColumnReader.open(ShardSet.open(home / "news"), "tokens").folder, "title.values")
    sources = open_sources(config)
    flip(sources.clicks.reader.folder, "history.values", "impressions-000001")
    reads = (
        lambda: sources.tokens.lengths("title", np.arange(20), 12),
        lambda: sources.tokens.reader.gather_ragged("title", np.arange(20)),
        lambda: sources.clicks.reader.gather_ragged("history", np.arange(12)),
    )
    reads[0]()
    for read in reads[1:]:
        with pytest.raises(DamageError, match="checksum") if check else contextlib.nullcontext():
            read()


def test_a_tensor_is_checked_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shards.cells as module

    folder = fill(ShardSet.open(home / "news"), TEACHERS[0]).folder
    reader = ColumnReader.open(ShardSet.open(home / "news"), "teacher-text")
    summed = []

    class Counting:
        @staticmethod
        def crc32(data: Any) -> int:
            summed.append(len(data))
            return real.crc32(data)

    real = module.zlib_ng
    monkeypatch.setattr(module, "zlib_ng", Counting)
    for _ in range(3):
        for way in ("all", "scattered", "one"):
            READS[way](reader)
    assert summed == [8 * 12, 8 * 12, 4 * 12]
    flip(folder, "title")  # in place, after it was checked: what a map cannot tell
    READS["all"](reader)
    assert len(summed) == 3


# Files that are not regular, too large, or nested too deeply.


@pytest.mark.parametrize("what", ["fifo", "zero", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "news-000001.tar",
        "news-000001.idx",
        "refused.jsonl",
        "columns/{tokens}/column.json",
        "columns/{tokens}/news-000001.json",
        "columns/{tokens}/news-000001.safetensors",
        "columns/{tokens}/tokenizer.sha256",
        "columns/{tokens}/tokenizer/tokenizer.json",
    ],
)
@pytest.mark.timeout(60)
def test_what_is_no_file_ends_in_one_line(
    home: Path, name: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    articles = ShardSet.open(home / "news")
    folder = ColumnReader.open(articles, "tokens").folder.name
    path = home / "news" / name.format(tokens=folder)
    path.unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert main(["shards", "verify", str(home / "news")]) == 1
    err = capsys.readouterr().err
    assert path.name in err and "Traceback" not in err
    is_read = not name.startswith("refused")
    with pytest.raises(DataError) if is_read else contextlib.nullcontext():
        opened = ShardSet.open(home / "news", check_files=False)
        TokenColumn.open(opened).batch("title", np.arange(20), 12)
        opened.sample(9)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"title":' * 50_000, b"{" + b" " * (1 << 21)])
@pytest.mark.timeout(60)
def test_headers_that_are_huge_or_deep(home: Path, header: bytes) -> None:
    articles = ShardSet.open(home / "news")
    folder = fill(articles, TEACHERS[0]).folder
    path = folder / f"{CELL}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    edit(folder / f"{CELL}.json", lambda values: values.update(bytes=len(header) + 8))
    with pytest.raises(ColumnError, match=CELL):
        ColumnReader.open(articles, "teacher-text", TEACHERS[0])
    (said,) = problems(home / "news")
    assert f"{CELL}.safetensors" in said
