"""Any change of any file of a set and its columns: named by verify, never a wrong value, one line.

A change is drawn at random: bytes of a file are flipped, cut, repeated or replaced, or one value of
a JSON file (the headers of data files among them) becomes another. Then everything is read as
training reads it. It must give what was written, or end in an error of the project.
"""

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import articles as articles_of
from helpers.foreign_tars import json_tars
from helpers.sets import make_articles, make_impressions, make_tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.click_batch import ClickRule, read_clicks
from shards.clicks import ClickColumn
from shards.column_check import verify_column_folders
from shards.column_extras import read_vector, write_vector
from shards.columns import ColumnReader, ColumnWriter
from shards.errors import TinyNewsRecError
from shards.foreign import index_tars
from shards.reader import ShardSet
from shards.tokens import TokenColumn
from shards.verify import verify_set

EXAMPLES = int(os.environ.get("TNR_FUZZ_EXAMPLES", "150"))
"""How many changes are tried; hundreds of thousands by hand."""


SETS = ("news", "log", "crawl")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Articles with tokens and teachers' vectors, a log over them, and tars made elsewhere."""
    home = tmp_path_factory.mktemp("fuzz")
    articles = make_articles(home / "news", 8, 4)
    make_tokens(articles, home / "tokenizer")
    writer = ColumnWriter(articles, "teacher-text", {"dtype": "float16"})
    for shard in writer.missing():
        rows = np.array(articles.rows_of(shard), np.float16)[:, None].repeat(3, axis=1)
        offsets = np.arange(len(rows) + 1)
        writer.write(shard, {"title": rows, "user.values": rows, "user.offsets": offsets})
    news = ColumnWriter(articles, "teacher-news", {"dtype": "float16"})
    for shard in news.missing():
        news.write(shard, {"news": np.ones((4, 3), np.int8), "news.scale": np.ones(4, np.float32)})
    write_vector(news.folder, np.arange(3, dtype=np.float16))
    make_impressions(home / "log", articles, 8, 4)
    json_tars(home / "crawl", articles_of(6))
    index_tars([home / "crawl"])
    return home


def read_all(home: Path) -> Iterator[Any]:
    """Everything that training reads, and every sample."""
    articles = ShardSet.open(home / "news", kind="articles", check_files=False)
    impressions = ShardSet.open(home / "log", kind="impressions", check_files=False)
    rows = np.arange(8)
    tokens = TokenColumn.open(articles)
    for view in (tokens.view(("title", 12)), tokens.view(("title", 12), ("body", 20))):
        yield from view.batch(rows)
        yield [group.ids.tolist() for group in view.groups(rows, 40)]
    yield tokens.skipped_rows
    teacher = ColumnReader.open(articles, "teacher-text", {"dtype": "float16"})
    yield teacher.gather("title", rows)
    yield teacher.gather("title", rows[[7, 0]])
    yield from teacher.gather_ragged("user", rows)
    news = ColumnReader.open(articles, "teacher-news", {"dtype": "float16"})
    yield from (news.gather("news", rows), news.gather("news.scale", rows))
    yield read_vector(news.folder)
    clicks = ClickColumn.open(impressions, articles.num_rows)
    yield clicks.num_clicks
    units = np.arange(clicks.num_clicks)
    yield from vars(read_clicks(clicks, ClickRule(0, 2, 5), units, np.zeros_like(units))).values()
    yield from (clicks.user(rows), clicks.time(rows), clicks.clicked(rows))
    yield list(articles), list(impressions)
    yield list(ShardSet.open(home / "crawl"))


def as_text(read: Iterator[Any]) -> list[str]:
    """What was read, for comparing."""
    return [repr(value.tolist() if isinstance(value, np.ndarray) else value) for value in read]


def files_of(home: Path) -> list[Path]:
    """Every file of the sets."""
    roots = [home / name for name in SETS]
    return sorted(path for root in roots for path in root.rglob("*") if path.is_file())


# Changes of bytes.


def flipped(data: bytes, at: int, by: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + bytes([data[at] ^ (by or 1)]) + data[at + 1 :] if data else b"\1"


def cut(data: bytes, at: int, by: int) -> bytes:
    return data[: at % max(len(data), 1)]


def repeated(data: bytes, at: int, by: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + data[at : at + by + 1] * 2 + data[at + by + 1 :] + b"\0"


def removed(data: bytes, at: int, by: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + data[at + by + 1 :]


# Changes of one value of a JSON text.

VALUES = (None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1.5, "", "x", "../x", "\0", "0" * 64, [], {})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key in value.keys() if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def other_value(data: bytes, at: int, by: int) -> bytes:
    """The JSON text, or the header of the data file, with one value changed or removed."""
    start = 0
    if data[:1] not in b"{[":
        (length,) = struct.unpack_from("<Q", data)
        start, text = 8, data[8 : 8 + length]
    else:
        text = data
    values = json.loads(text)
    known = copy.deepcopy(values)
    found = list(places(values))
    container, key = found[at % len(found)]
    if by % (len(VALUES) + 1) == len(VALUES):
        del container[key]
    else:
        container[key] = VALUES[by % (len(VALUES) + 1)]
    if values == known:
        return data  # it was that already
    changed = json.dumps(values).encode()
    return changed if not start else struct.pack("<Q", len(changed)) + changed + data[8 + length :]


BYTES: tuple[Callable[[bytes, int, int], bytes], ...] = (flipped, cut, repeated, removed)
_HAS_JSON = (".json", ".safetensors")


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    which=st.integers(0, 1 << 16),
    change=st.integers(0, 2 * len(BYTES) - 1),
    at=st.integers(0, 1 << 30),
    by=st.integers(0, 255),
)
def test_any_change_of_any_file(home: Path, which: int, change: int, at: int, by: int) -> None:
    files = files_of(home)
    path = files[which % len(files)]
    was, good = path.read_bytes(), as_text(read_all(home))
    is_json = path.suffix in _HAS_JSON and path.parent.name != "tokenizer"
    changes = (*BYTES, *[other_value] * len(BYTES)) if is_json else BYTES * 2
    now = changes[change](was, at, by)
    if now == was:
        return
    path.write_bytes(now)
    try:
        read: list[str] = []
        try:
            for text in as_text_one_by_one(home):
                read.append(text)
        except TinyNewsRecError as error:
            assert "\n" not in str(error)
        assert read == good[: len(read)], f"other values from {path}"
        assert is_found(home) or is_meant_the_same(was, now), f"verify does not find {path}"
    finally:
        path.write_bytes(was)


def as_text_one_by_one(home: Path) -> Iterator[str]:
    for value in read_all(home):
        yield as_text(iter([value]))[0]


def is_found(home: Path) -> bool:
    """Whether verify names anything."""
    for name in SETS:
        try:
            if not verify_set(home / name).ok:
                return True
            problems, intact = verify_column_folders(ShardSet.open(home / name, check_files=False))
        except TinyNewsRecError as error:
            assert "\n" not in str(error)
            return True
        if problems or any("cells)" in one for one in intact):
            assert all("\n" not in problem for problem in problems)
            return True
    return False


def is_meant_the_same(was: bytes, now: bytes) -> bool:
    """Whether both are the same JSON in other words, or as an older version wrote it, without a
    checksum: no reader can tell that."""
    try:
        before, after = json.loads(was), json.loads(now)
    except (ValueError, RecursionError):
        return False
    return before == after or (
        isinstance(before, dict) and {k: v for k, v in before.items() if k != "checksum"} == after
    )


def test_a_file_that_is_missing(home: Path, tmp_path: Path) -> None:
    """Every file but the reports is missed."""
    good = as_text(read_all(home))
    for path in files_of(home):
        aside = Path(shutil.move(path, tmp_path / "aside"))
        try:
            read = []
            try:
                for text in as_text_one_by_one(home):
                    read.append(text)
            except TinyNewsRecError as error:
                assert "\n" not in str(error)
            assert read == good[: len(read)]
            assert is_found(home) or path.name == "tokenizer.sha256", path
        finally:
            shutil.move(aside, path)
