"""Reading files that strangers may have put there: regular, of a stated size, of the right type."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from shards.errors import DamageError, DataError
from shards.files import read_bytes, read_json, remove, sha256_file


@dataclass(frozen=True)
class Facts:
    """A small schema."""

    rows: Annotated[int, msgspec.Meta(ge=0)]
    name: str = ""


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
