"""Inputs made to exhaust memory, time or the stack: stated limits, and one line each."""

import gzip
import os
import tarfile
import zipfile

import pytest
from helpers.corpora import articles, refusals, write_json_lines
from helpers.foreign_tars import json_bytes, write_tar

from shards.build import build_articles, build_impressions
from shards.errors import DamageError, DataError
from shards.foreign import index_tars
from shards.sources import MAX_BLANK_LINES, MAX_JSON_DEPTH, is_deep

MIB = 1 << 20


def packed(path, *parts):
    with gzip.open(path, "wb", 9) as file:
        for part, times in parts:
            for _ in range(times):
                file.write(part)
    return path


@pytest.mark.parametrize("blank", [b"\n", b" \n"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.tsv.gz"])
def test_blank_lines_without_end(tmp_path, name, blank):
    head = b"" if "json" in name else b"id,title\n" if "csv" in name else b"id\ttitle\n"
    path = packed(tmp_path / name, (head, 1), (blank * MIB, 3))
    end = f"more than {MAX_BLANK_LINES:,} blank lines in a row"
    if blank != b"\n" and "json" not in name:  # rows of one column
        end = "the first 1000 rows were all refused"
    with pytest.raises(DataError, match=end):
        build_articles([path], tmp_path / "set")


def test_what_unpacks_to_far_more_than_text(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources._FREE_UNPACKED_BYTES", MIB // 4)
    line = b'{"id": "1", "title": "t", "body": "' + b"x" * 100_000 + b'"}\n'
    path = packed(tmp_path / "a.jsonl.gz", (line, 60))
    match = r"a\.jsonl\.gz unpacks to more than [0-9,]+ bytes from [0-9,]+, more than 200 times"
    with pytest.raises(DataError, match=match):
        build_articles([path], tmp_path / "set")
    one_line = packed(tmp_path / "b.jsonl.gz", (b"x" * MIB, 6))
    with pytest.raises(DataError, match="unpacks to more than"):
        build_articles([one_line], tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("news.tsv", b"x" * (6 * MIB))
    with pytest.raises(DataError, match=r"a\.zip/news\.tsv unpacks to more than"):
        build_articles([tmp_path / "a.zip"], tmp_path / "set")
    # Not packed, the same is one article sixty times.
    (tmp_path / "a.jsonl").write_bytes(line * 60)
    assert build_articles([tmp_path / "a.jsonl"], tmp_path / "set", max_refused=1)


def test_parquet_that_unpacks_to_far_more_than_text(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    from pyarrow import parquet

    monkeypatch.setattr("shards.sources._FREE_UNPACKED_BYTES", MIB)
    count = 500
    table = {"id": [str(n) for n in range(count)], "title": ["t" * 20_000] * count}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet unpacks to more than"):
        build_articles([tmp_path / "a.parquet"], tmp_path / "set")
    monkeypatch.setattr("shards.parquet.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("shards.sources._FREE_UNPACKED_BYTES", 1 << 40)
    with pytest.raises(DataError, match="row too long 500"):
        build_articles([tmp_path / "a.parquet"], tmp_path / "set")


def test_a_zip_of_a_later_version_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("news.tsv", b"n1\tnews\tlocal\ta\tb\n")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 84  # the version that is needed to extract: 8.4
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"cannot open the archive .*a\.zip: zip file version 8\.4"):
        build_articles([tmp_path / "a.zip"], tmp_path / "set")


def test_a_line_that_is_too_long_in_a_zip_is_refused_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources.MAX_ROW_BYTES", 1000)
    good = "N1\tnews\tw\tTitle\tAbstract\t\t\t\n"
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("news.tsv", "x" * (8 * MIB) + "\n" + good)
    made = build_articles([tmp_path / "a.zip"], tmp_path / "set", max_refused=1)
    assert made.shard_set.num_rows == 1
    assert refusals(tmp_path / "set") == [("a.zip/news.tsv", 1, "row too long")]


def test_many_short_lines_of_a_gzip_come_in_small_chunks(tmp_path, monkeypatch):
    from shards.chunks import cut
    from shards.sources import InputFile

    monkeypatch.setattr("shards.chunks.CHUNK_BYTES", 64_000)
    path = packed(tmp_path / "a.jsonl.gz", (b"{\n", 10_000))
    sizes = [len(chunk.lines) for chunk in cut(InputFile(path), "jsonl")]
    assert sum(sizes) == 10_000 and max(sizes) <= 500


def nested(depth, opening="[", closing="]"):
    return opening * depth + '"x"' + closing * depth


def test_depth_of_json_is_limited_and_the_same_for_every_caller(tmp_path):
    def rows(field):
        for depth in (MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH, 700, 950, 990, 5000):
            for opening, closing in (("[", "]"), ('{"a":', "}")):
                value = nested(depth, opening, closing)
                body = "" if field == "body" else '"body": "b", '
                yield f'{{"id": "{depth}{opening[0]}", "title": "t", {body}"{field}": {value}}}'

    path = write_json_lines(tmp_path / "a.jsonl", (row.encode() for row in rows("other")))
    made = build_articles([path], tmp_path / "set", max_refused=1, keep_duplicates=True).shard_set
    assert [article["id"] for article in made] == ["499[", "499{"]
    assert made.manifest.refused == {"bad JSON": 10}
    path = write_json_lines(tmp_path / "b.jsonl", (row.encode() for row in rows("body")))

    def deeper(left):
        if left:
            return deeper(left - 1)
        return build_articles([path], tmp_path / "other", max_refused=1).shard_set

    assert [article["body"] for article in deeper(300)] == ["x"]


@pytest.mark.parametrize(
    ("text", "deep"),
    [("[" * 501, True), ("[]" * 600, False), ('"' + "[" * 600 + '"', False),
     ('"\\"' + "[" * 600 + '"', False), ('"a" ' + "{[" * 251, True), (nested(500), False)],
)  # fmt: skip
def test_brackets_in_texts_are_not_depth(text, deep):
    assert is_deep(text.encode()) == deep


@pytest.mark.parametrize("column", [",", "a,"])
def test_a_header_of_a_million_columns_is_not_printed_whole(tmp_path, column):
    (tmp_path / "a.csv").write_text(column * 1_000_000 + "id\n1\n")
    with pytest.raises(DataError) as error:
        build_articles([tmp_path / "a.csv"], tmp_path / "set")
    assert len(str(error.value)) < 200
    (tmp_path / "b.csv").write_text(",".join(f"c{n}" for n in range(10_000)) + "\n1\n")
    with pytest.raises(DataError, match="c39 and 9960 more; name the fields") as error:
        build_articles([tmp_path / "b.csv"], tmp_path / "set")
    assert len(str(error.value)) < 500


def test_an_open_quote_before_many_short_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.tables._MAX_QUOTED_BYTES", 100_000)
    lines = ["1,first", '"never closed', *["x"] * 5_000]
    (tmp_path / "a.csv").write_text("id,title\n" + "\n".join(lines) + "\n")
    made = build_articles([tmp_path / "a.csv"], tmp_path / "set", max_refused=1).shard_set
    assert made.num_rows == 1


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, fifo):
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "news.tsv").symlink_to(fifo)
    good = write_json_lines(tmp_path / "a.jsonl", articles(3))
    made = build_articles([good], tmp_path / "good").shard_set
    pipe = "is not a file but a pipe; inputs are read more than once: write it to a file first"
    for path, match in ((fifo, pipe), (tmp_path / "zero.jsonl", "is not a file"),
                        (tmp_path / "folder", "news.tsv")):  # fmt: skip
        with pytest.raises(DataError, match=match):
            build_articles([path], tmp_path / "set")
        with pytest.raises(DataError, match=match.replace("news", "behaviors")):
            build_impressions([path], made, tmp_path / "log")
    with pytest.raises(DataError, match="is not a file but a pipe"):
        build_articles([good], tmp_path / "set", bodies=fifo)


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder"])
def test_a_tar_that_is_not_a_file(tmp_path, fifo, kind):
    tars = tmp_path / "tars"
    write_tar(tars / "a.tar", [("k.json", json_bytes(articles(1)[0]))])
    if kind == "folder":
        (tars / "b.tar").mkdir()
    else:
        (tars / "b.tar").symlink_to(fifo if kind == "fifo" else "/dev/zero")
    with pytest.raises(
        DataError, match=r"cannot read .*b\.tar: (it is not a regular file|Is a directory)"
    ):
        index_tars([tars])


def header(name, size, kind=b"0"):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def member(name, data, kind=b"0"):
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


SAMPLE = member("k.json", json_bytes(articles(1)[0]))


def test_a_header_of_many_records_takes_no_more_time_than_its_bytes(tmp_path):
    many = member("x", b"6 a=b\n" * 170_000, b"x")
    (tmp_path / "a.tar").write_bytes(many * 3 + SAMPLE + bytes(1024))
    assert index_tars([tmp_path]).num_rows == 1


@pytest.mark.parametrize("data", [b"5012 size=" + b"9" * 5001 + b"\n", b"9" * 6000 + b" a=b\n"])
def test_numbers_of_thousands_of_digits(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(member("x", data, b"x") + SAMPLE + bytes(1024))
    with pytest.raises(DamageError, match=r"offset 0: an (unreadable )?extended header"):
        index_tars([tmp_path])


def test_a_json_member_of_gigabytes_is_not_read_for_the_guess(tmp_path):
    size = 5 << 30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(SAMPLE + header("big.json", size))
        file.truncate(file.tell() + 1000)
    with pytest.raises(DamageError, match="the tar ends in the data"):
        index_tars([tmp_path])


def test_zeros_behind_the_end_are_limited(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(SAMPLE)
        file.truncate(300 << 30)
    with pytest.raises(DamageError, match="bytes of zeros at the end"):
        index_tars([tmp_path])


def test_many_links_are_passed_over(tmp_path):
    links = b"".join(header(f"l{n}", 0, b"2") for n in range(2000))
    (tmp_path / "a.tar").write_bytes(links + SAMPLE + bytes(1024))
    assert index_tars([tmp_path]).manifest.counts["no_files"] == 2000
