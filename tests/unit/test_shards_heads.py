"""How inputs are packed and encoded is told by their first bytes, whatever they are called."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile

import pytest
from helpers.corpora import articles, write_json_lines
from helpers.foreign_tars import json_bytes, write_tar

from shards.build import build_articles, build_impressions
from shards.errors import DataError
from shards.foreign import index_tars
from shards.heads import HEAD_BYTES, wide_encoding
from shards.sources import InputFile

ROWS = articles(20)
CODES = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
TEXTS = ("title", "body")
NEWS = "".join(
    f"N{n}\tnews\tworld\tTitle {n}\tAbstract {n}\thttps://x\t[]\t[]\r\n" for n in range(20)
)
LOG = "".join(f"{n}\tU1\t11/11/2019 9:05:58 AM\tN3\tN4-1 N5-0\n" for n in range(1, 9))


@pytest.fixture
def json_lines(tmp_path):
    return write_json_lines(tmp_path / "plain" / "a.jsonl", ROWS).read_bytes()


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "plain").mkdir()


@pytest.mark.parametrize("code", CODES)
def test_text_in_utf_16_and_utf_32_is_named(tmp_path, json_lines, code):
    texts = {
        "news.tsv": NEWS,
        "a.jsonl": json_lines.decode(),
        "a.csv": "id,title\r\n" + "".join(f"{row['id']},{row['title']}\r\n" for row in ROWS),
        "a.tsv": "id\ttitle\n" + "".join(f"{row['id']}\t{row['title']}\n" for row in ROWS),
        "a.jsonl.gz": json_lines.decode(),
    }
    expected = code.upper().replace("-LE", "LE").replace("-BE", "BE")
    for name, text in texts.items():
        data = text.encode(code)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(DataError, match=f"is {expected}.*expected UTF-8.*iconv -f UTF-") as e:
            build_articles([tmp_path / name], tmp_path / "set")
        assert "\n" not in str(e.value)
        assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("code", ["utf-16", "utf-16-be"])
def test_also_in_zips_click_logs_and_files_of_bodies(tmp_path, json_lines, code):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/news.tsv", NEWS.encode(code))
    (tmp_path / "bodies.jsonl").write_bytes(json_lines.decode().encode(code))
    (tmp_path / "behaviors.tsv").write_bytes(LOG.encode(code))
    plain = tmp_path / "plain" / "a.jsonl"
    with pytest.raises(DataError, match=r"a\.zip/news\.tsv is UTF-16"):
        build_articles([tmp_path / "a.zip"], tmp_path / "set")
    with pytest.raises(DataError, match=r"bodies\.jsonl is UTF-16"):
        build_articles([plain], tmp_path / "set", bodies=tmp_path / "bodies.jsonl")
    made = build_articles([plain], tmp_path / "set").shard_set
    with pytest.raises(DataError, match=r"behaviors\.tsv is UTF-16"):
        build_impressions([tmp_path / "behaviors.tsv"], made, tmp_path / "log")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_the_remedy_unpacks_a_file_of_any_name(tmp_path, json_lines, pack):
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(pack(json_lines)) if pack is gzip.compress else pack(json_lines))
    with pytest.raises(DataError, match="unpack it first: ") as raised:
        build_articles([path], tmp_path / "set")
    command = str(raised.value).split("unpack it first: ")[1].replace("FILE", str(tmp_path / "b"))
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"this machine has no {command.split()[0]}")
    subprocess.run(command, shell=True, check=True, timeout=60)
    built = build_articles([tmp_path / "b"], tmp_path / "set", input_format="jsonl")
    assert built.shard_set.num_rows > 0


def test_a_text_of_ideographs_without_a_mark():
    text = '{"id": "1", "title": "' + "一丁新聞記事" * 2000
    assert wide_encoding(text.encode("utf-16-le")[:HEAD_BYTES]) == "UTF-16LE"
    assert wide_encoding(text.encode("utf-16-be")[:HEAD_BYTES]) == "UTF-16BE"
    assert wide_encoding(text.encode("utf-8")[:HEAD_BYTES]) is None


@pytest.mark.parametrize("head", [b"", b"a", b"N1\0x\tnews", b"\0" * 100, b"\xef\xbb\xbfid\t\n"])
def test_utf_8_is_not_taken_for_another(head):
    assert wide_encoding(head) is None


def _tar(data):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _zip(data):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jsonl", data)
    return packed.getvalue()


PACKED = {
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": lambda data: b"\x28\xb5\x2f\xfd" + data,
    "lz4": lambda data: b"\x04\x22\x4d\x18" + data,
    "7-Zip": lambda data: b"7z\xbc\xaf\x27\x1c" + data,
    "tar": _tar,
    "zip": _zip,
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.packed", "a.JSONL.GZ"])
def test_what_is_not_read_is_named_with_the_remedy(tmp_path, json_lines, kind, name):
    (tmp_path / name).write_bytes(PACKED[kind](json_lines))
    for form in (None, "jsonl"):
        with pytest.raises(DataError, match=f"is packed with {kind}; unpack it first|members nam"):
            build_articles([tmp_path / name], tmp_path / "set", input_format=form)
    with pytest.raises(DataError, match=f"is packed with {kind}|members named behaviors"):
        build_impressions([tmp_path / name], _set(tmp_path), tmp_path / "log")


def _set(tmp_path):
    return build_articles([tmp_path / "plain" / "a.jsonl"], tmp_path / "plain-set").shard_set


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL.GZ", "a.jsonl.Gz", "a.json"])
def test_gzip_is_read_under_any_name(tmp_path, json_lines, name):
    (tmp_path / name).write_bytes(gzip.compress(json_lines))
    assert list(build_articles([tmp_path / name], tmp_path / "set").shard_set) == ROWS
    assert not InputFile(tmp_path / name).is_plain


def test_gzip_inside_a_zip_is_read_and_anything_deeper_is_named(tmp_path):
    for name, data in {"one": gzip.compress(NEWS.encode()), "two": bz2.compress(b"x")}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("news.tsv", data)
    assert build_articles([tmp_path / "one.zip"], tmp_path / "set").shard_set.num_rows == 20
    with pytest.raises(DataError, match=r"two\.zip/news\.tsv is not text but.*bzip2; unpack it"):
        build_articles([tmp_path / "two.zip"], tmp_path / "other")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(gzip.compress(b"{}")))
    with pytest.raises(DataError, match=r"is not text but \(after unpacking\) gzip"):
        build_articles([tmp_path / "b.jsonl.gz"], tmp_path / "other")


def test_parquet_under_another_name_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="is not text but Parquet; give --format parquet"):
        build_articles([tmp_path / "a.jsonl"], tmp_path / "set")


@pytest.mark.parametrize("code", CODES)
def test_members_of_tars_in_another_encoding_are_refused(tmp_path, code):
    text = [(f"{n}.{name}.txt", f"Text {n}".encode(code)) for n in range(2) for name in TEXTS]
    good = [(f"g{n}.{name}.txt", b"Text %d" % n) for n in range(3) for name in TEXTS]
    write_tar(tmp_path / "t" / "a.tar", [*good, *text])
    write_tar(
        tmp_path / "j" / "a.tar",
        [(f"{n}.json", json_bytes(row)) for n, row in enumerate(ROWS)]
        + [("x.json", json_bytes(ROWS[0]).decode().encode(code))],
    )
    for folder, refused in (("t", 2), ("j", 1)):
        made = index_tars([tmp_path / folder], max_refused=0.5)
        ((reason, count),) = made.manifest.refused.items()
        assert reason.startswith("UTF-") and reason.endswith(" and not UTF-8")
        assert (count, made.num_rows) == (refused, 3 if folder == "t" else 20)
