"""Inputs that were damaged at random: one line or a set, never a traceback, and nothing invented.

``TNR_FUZZ_EXAMPLES`` raises the number of examples of each target, for an hour by hand.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile

import pytest
from helpers.corpora import articles, news_line
from helpers.foreign_tars import json_bytes, text_members, write_tar
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shards.build import build_articles, build_impressions
from shards.click_cells import UNKNOWN_TIME, parse_time
from shards.clicks import ClickColumn
from shards.errors import TinyNewsRecError
from shards.fields import ArticleFields
from shards.foreign import index_tars
from shards.reader import ShardSet

EXAMPLES = int(os.environ.get("TNR_FUZZ_EXAMPLES", "40"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="TNR_FUZZ_EXAMPLES" not in os.environ,
)
ROWS = articles(12)
LOG = "".join(
    f"{n}\tU{n % 3}\t11/15/2019 8:55:{n:02d} AM\tN1 N2 X\tN{n % 12}-1 N{(n + 1) % 12}-0\n"
    for n in range(1, 20)
)
PIECES = st.sampled_from(
    [b"\0", b"\n", b"\r", b"\t", b'"', b'""', b",", b"\\", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"[",
     b"}", b"null", b"1e999", b"NaN", b"-0.0", b"17.0", b"9007199254740993.0", b"\\ud800",
     b'{"id":', b"\xc2\x85", b"\xe2\x80\xa8", b"2019-11-15T08:55:22", b"1602061200123", b"N1-1",
     b"512", b"\x1f\x8b", b"PK\3\4", b"ustar\0", b"0" * 12, b"\x80" + b"\xff" * 11]
)  # fmt: skip
CHANGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "replace", "repeat", "swap"]),
    st.integers(0, 2**32),
    st.integers(0, 64),
    PIECES,
)


def damaged(data: bytes, changes) -> bytes:
    """Apply changes one after the other, at places that are taken modulo the length."""
    for kind, place, length, piece in changes:
        at = place % (len(data) + 1)
        part = data[at : at + length]
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << length % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + length :] if length < 60 else data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "replace":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "repeat":
            data = data[:at] + part * 3 + data[at + length :]
        else:
            data = data[: at // 2] + part + data[at // 2 :]
    return data


def _zip(name, data):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "x")
        archive.writestr(name, data)
    return packed.getvalue()


def _parquet():
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'parquet'")
    from pyarrow import parquet

    file = io.BytesIO()
    rows = [row | {"head": {"main": ["t"]}, "n": 1.5} for row in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


JSONL = b"".join(json_bytes(row) + b"\n" for row in ROWS)
CSV = "id,title,body\n" + "".join(f'{r["id"]},"{r["title"]}, a","{r["body"]}\nb"\n' for r in ROWS)
TSV = "id\ttitle\tbody\n" + "".join(f"{r['id']}\t{r['title']}\t{r['body']}\n" for r in ROWS)
NEWS = "".join(news_line(n) + "\n" for n in range(12))
SEEDS = {
    "a.jsonl": lambda: JSONL,
    "a.jsonl.gz": lambda: gzip.compress(JSONL, mtime=0),
    "a.csv": CSV.encode,
    "a.tsv": TSV.encode,
    "news.tsv": NEWS.encode,
    "a.zip": lambda: _zip("x/news.tsv", NEWS),
    "a.parquet": _parquet,
}


def attempt(make):
    """What it makes, or None where it says in one line what is wrong."""
    try:
        return make()
    except TinyNewsRecError as error:
        assert str(error) and "\n" not in str(error), str(error)
        assert len(str(error)) < 3000
        return None


def check(made: ShardSet) -> None:
    counts = made.manifest.counts
    samples = list(made)
    dropped = counts.get("repeated", 0) + counts.get("duplicate_content", 0)
    assert len(samples) == counts["written"]
    assert counts["rows"] == counts["written"] + counts.get("refused", 0) + dropped
    for sample in samples:
        assert sample["id"] and sample["title"] and "\0" not in sample["id"]
        json.dumps(sample, ensure_ascii=False).encode("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", SEEDS)
def test_articles(folder, name):
    seed = SEEDS[name]()

    @fuzz
    @given(st.lists(CHANGE, max_size=6))
    @example([])
    def target(changes):
        (folder / name).write_bytes(damaged(seed, changes))
        out = folder / "set"
        shutil.rmtree(out, ignore_errors=True)
        made = attempt(lambda: build_articles([folder / name], out, max_refused=1).shard_set)
        assert made is not None or changes
        if made is not None:
            check(made)
            if name == "a.jsonl":
                nothing_invented(made, (folder / name).read_bytes())

    target()


def nothing_invented(made, data):
    """Every id of a set is on a line of its own in the input, as Python's parser reads it."""
    ids = set()
    for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and "id" in record:
                value = record["id"]
                value = value[0] if isinstance(value, list) and value else value
                whole = isinstance(value, float) and value.is_integer()
                ids.add(str(int(value) if whole else value).strip())
    assert {sample["id"] for sample in made} <= ids


def test_any_json_objects(folder):
    keys = st.sampled_from(["id", "title", "body", "category", "time", "url", "x", "a.b", "\ud800"])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )
    paths = st.sampled_from([None, "x", "x.id", "x.0", "body[id=*].title", "a.b"])

    @fuzz
    @given(st.lists(st.dictionaries(keys, values, max_size=6), min_size=1, max_size=5), paths)
    def target(rows, path):
        (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = folder / "set-b"
        shutil.rmtree(out, ignore_errors=True)
        fields = ArticleFields(title=path)
        options = {"max_refused": 1, "fields": fields, "keep_duplicates": True}
        made = attempt(lambda: build_articles([folder / "b.jsonl"], out, **options).shard_set)
        if made is not None:
            check(made)

    target()


@pytest.fixture(scope="module")
def article_set(folder):
    (folder / "good.jsonl").write_bytes(JSONL)
    return build_articles([folder / "good.jsonl"], folder / "articles").shard_set


@pytest.mark.parametrize("name", ["behaviors.tsv", "b.zip"])
def test_click_logs(folder, article_set, name):
    seed = LOG.encode() if name == "behaviors.tsv" else _zip("behaviors.tsv", LOG)

    @fuzz
    @given(st.lists(CHANGE, max_size=6))
    @example([])
    def target(changes):
        (folder / name).write_bytes(damaged(seed, changes))
        out = folder / "log"
        shutil.rmtree(out, ignore_errors=True)
        options = {"max_refused": 1}
        build = lambda: build_impressions([folder / name], article_set, out, **options).shard_set  # noqa: E731
        made = attempt(build)
        assert made is not None or changes
        if made is None:
            return
        assert made.num_rows == made.manifest.counts["rows"] - made.manifest.counts["refused"]
        times = ClickColumn.open(made).time(range(made.num_rows)).tolist()
        assert times == [parse_time(sample["time"]) for sample in made]
        unknown = made.manifest.counts.get("unknown_time", 0)
        assert times.count(UNKNOWN_TIME) == unknown

    target()


TARS = {
    "json": [(f"k{n}.json", json_bytes(row)) for n, row in enumerate(ROWS)],
    "texts": [m for n, r in enumerate(ROWS) for m in text_members(f"k{n}", r["title"], r["body"])],
    "long names": [("x" * 120 + f"{n}.json", json_bytes(row)) for n, row in enumerate(ROWS)],
}


@pytest.mark.parametrize("kind", TARS)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars(folder, kind, format):
    tars = folder / f"tars-{kind}-{format}"
    seed = write_tar(tars / "a.tar", TARS[kind], format=format).read_bytes()

    @fuzz
    @given(st.lists(CHANGE, max_size=4))
    @example([])
    def target(changes):
        for path in tars.iterdir():
            path.unlink()
        (tars / "a.tar").write_bytes(damaged(seed, changes))
        made = attempt(lambda: index_tars([tars], max_refused=1))
        assert made is not None or changes
        if made is not None:
            keys = [made.key(row) for row in range(made.num_rows)]
            assert len(set(keys)) == len(keys) and not any("\0" in key for key in keys)
            check(made)

    target()
