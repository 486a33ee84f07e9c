"""Reading files that strangers may have put there: regular, of a stated size, of the right type."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from shards.errors import DamageError, DataError
from shards.files import (
    atomic_file,
    read_bytes,
    read_json,
    remove,
    sha256_file,
    temporary_name,
    write_json_atomic,
)


@dataclass(frozen=True)
class Facts:
    """A small schema."""

    rows: Annotated[int, msgspec.Meta(ge=0)]
    name: str = ""


@pytest.mark.parametrize("former", [None, b"former"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path, former) -> None:
    path = tmp_path / "file"
    if former is not None:
        path.write_bytes(former)
    with pytest.raises(RuntimeError, match="of the test"), atomic_file(path) as file:
        file.write(b"half of it")
        raise RuntimeError("error of the test")
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == (
        [] if former is None else [(path, former)]
    )


def test_two_who_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path) as outer:
        outer.write(b"outer")
        with atomic_file(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert [(p, p.read_bytes()) for p in tmp_path.iterdir()] == [(path, b"outer")]
    assert f".tmp-{os.getpid()}-" in temporary_name(path).name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": float("-inf")}]])
def test_numbers_that_json_lacks_are_not_written(tmp_path: Path, value) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(tmp_path / "file", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [read_json, sha256_file, lambda path: read_bytes(path, limit=9)])
@pytest.mark.timeout(20)
def test_a_fifo_or_a_device_is_refused_at_once(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero"):
        with pytest.raises(DataError, match=f"{name}: it is not a regular file"):
            read(tmp_path / name)


def test_a_file_over_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamageError, match="1,099,511,627,776 bytes; expected at most"):
        read_json(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"rows": NaN}', '{"rows": 1} x', b"\xff\xfe{\x00"]
)
def test_what_is_not_json_is_damage(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamageError, match=r"facts\.json"):
        read_json(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], r"Expected `object`, got `array`"),
        ({}, r"missing required field `rows`"),
        ({"rows": "3"}, r"Expected `int`, got `str` - at `\$.rows`"),
        ({"rows": True}, r"Expected `int`, got `bool` - at `\$.rows`"),
        ({"rows": -1}, r"Expected `int` >= 0 - at `\$.rows`"),
        ({"rows": 1, "name": None}, r"Expected `str`, got `null` - at `\$.name`"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(tmp_path: Path, value, said: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DamageError, match=said):
        read_json(path, Facts)


def test_what_fits_is_returned_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"rows": 3, "later": [1]}')
    assert read_json(path, Facts) == Facts(3)
    assert read_json(path) == {"rows": 3, "later": [1]}


def test_whatever_stands_in_a_place_is_removed_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    os.mkfifo(tmp_path / "folder" / "inner" / "fifo")
    # Held open, so that who opens it does not wait for ever.
    holder = os.open(tmp_path / "fifo", os.O_RDWR)
    for name in ("fifo", "link", "folder", "nothing"):
        remove(tmp_path / name)
    os.close(holder)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
