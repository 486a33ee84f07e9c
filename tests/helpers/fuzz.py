"""Mutations of small files, and the rule that every loader of such files keeps.

A loader gives what it gave for the unchanged files, or another result that its row allows, or
raises a :class:`TinyNewsRecError` of one line, within a time and memory limit.
"""

import contextlib
import copy
import errno
import json
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import category

from hypothesis import strategies as st

from shards.errors import TinyNewsRecError

LIMIT_S = 20.0
LIMIT_BYTES = 3 << 30
"""Address space that one load may take beyond what the process has."""


@dataclass(frozen=True)
class Loader:
    """One row of the table: what is made, what is changed in it, and what reads it."""

    name: str
    make: Callable[[Path], None]
    """Writes small valid files into a folder."""
    targets: tuple[str, ...]
    """Patterns, below the folder, of the files to change."""
    load: Callable[[Path], Any]
    """Reads them into plain values that ``==`` compares."""
    allows: Callable[[Path, Any, Any], str | None] | None = None
    """What is wrong with another result than the unchanged one (folder, before, now), or None; no
    function allows no other result."""
    forge: Callable[[Path], None] | None = None
    """Makes checksums fit again, as someone who edits files on purpose would: any result goes."""
    examples: int = 40
    """Examples in a quick run."""


@dataclass(frozen=True)
class Edit:
    """One change of one file; the numbers choose place and kind, whatever the file holds."""

    file: int
    kind: str
    place: int
    value: int
    length: int

    def apply(self, files: list[Path]) -> str:
        """Change a file and return what was done."""
        path = files[self.file % len(files)]
        if not path.is_file():
            return f"{path.name}: gone already"
        done = _KINDS[self.kind](self, path, files)
        return f"{path.name}: {self.kind} {done}"


def edits() -> st.SearchStrategy[list[Edit]]:
    """One to three changes, most of them of contents."""
    number = st.integers(0, 1 << 16)
    kinds = st.sampled_from([*_CONTENTS, *_CONTENTS, *_KINDS])
    one = st.builds(Edit, number, kinds, number, number, st.integers(1, 64))
    return st.lists(one, min_size=1, max_size=3)


class TookTooLong(BaseException):
    """A load passed its time limit; not an Exception, so that nothing catches it."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Bound time and memory of the block."""

    def stop(*_: object) -> None:
        raise TookTooLong(f"more than {LIMIT_S:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def check(loader: Loader, original: Path, work: Path, expected: Any, changes: list[Edit]) -> None:
    """Change a copy of the files and read it.

    Args:
        loader: The row.
        original: The unchanged files.
        work: Where the copy goes; replaced.
        expected: What the row's ``load`` gave for the unchanged files.
        changes: What to change.

    Raises:
        AssertionError: The rule is broken; the message says by which changes.
    """
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work, symlinks=True)
    files = target_files(loader, work)
    done = [edit.apply(files) for edit in changes]
    # Chosen by the example itself, so that it is repeated as it was.
    wanted = changes[0].length % 2 == 0 and all(path.is_file() for path in files)
    forged = wanted and loader.forge is not None
    if forged and loader.forge is not None:
        with contextlib.suppress(Exception):  # what is damaged cannot be made to fit
            loader.forge(work)
            done.append("checksums fit again")
    what = f"{loader.name} after {'; '.join(done)}"
    try:
        with limits():
            found = loader.load(work)
    except TinyNewsRecError as error:
        text = str(error)
        is_line = len(text.splitlines()) == 1 and not any(category(c) == "Cc" for c in text)
        assert is_line, f"{what}: not one line without control characters: {text[:500]!r}"
        return
    except OSError as error:
        # A command says in one line that a name is too long for the file system.
        assert error.errno == errno.ENAMETOOLONG, f"{what}: {error}"
        return
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is not an Exception
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error
    if forged or same(found, expected):
        return
    wrong = "another result" if loader.allows is None else loader.allows(work, expected, found)
    assert wrong is None, f"{what}: {wrong}"


def same(found: Any, expected: Any) -> bool:
    """Whether two results are equal; NaN equals nothing, as it should."""
    return bool(found == expected)


def target_files(loader: Loader, folder: Path) -> list[Path]:
    """Files that a row changes, in a settled order."""
    found = {path for pattern in loader.targets for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


# ---- bytes

_PIECES = (
    b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\r\n", b"\t", b'"', b"'",
    b",", b"{", b"}", b"[", b"]", b"[" * 20_000, b"null", b"NaN", b"-1", b"1e999", b"9" * 400,
    b"\\ud800", b"\xed\xa0\x80", "\u2028\u0085".encode(), b"x" * 70_000, b"\x1f\x8b\x08",
    b"PK\x03\x04", b"&a [*a]", b"!!python/object/apply:os.system [true]", b": :", b"%s%d", b"$(a)",
)  # fmt: skip


def _at(edit: Edit, size: int) -> int:
    return edit.place * 7919 % max(1, size)


def _flip(edit: Edit, path: Path, _: list[Path]) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        return "nothing"
    at = _at(edit, len(data))
    data[at] ^= 1 << edit.value % 8
    path.write_bytes(data)
    return f"bit {edit.value % 8} of byte {at}"


def _replace(edit: Edit, path: Path, _: list[Path]) -> str:
    data, piece = path.read_bytes(), _PIECES[edit.value % len(_PIECES)]
    at = _at(edit, len(data))
    path.write_bytes(data[:at] + piece + data[at + edit.length :])
    return f"{edit.length} bytes at {at} by {piece[:20]!r}"


def _insert(edit: Edit, path: Path, _: list[Path]) -> str:
    data, piece = path.read_bytes(), _PIECES[edit.value % len(_PIECES)]
    at = _at(edit, len(data) + 1)
    path.write_bytes(data[:at] + piece + data[at:])
    return f"{piece[:20]!r} at {at}"


def _cut(edit: Edit, path: Path, _: list[Path]) -> str:
    at = _at(edit, path.stat().st_size)
    os.truncate(path, at)
    return f"to {at} bytes"


def _repeat(edit: Edit, path: Path, _: list[Path]) -> str:
    data = path.read_bytes()
    at = _at(edit, len(data))
    part = data[at : at + edit.length * 16]
    path.write_bytes(data[:at] + part + data[at:])
    return f"{len(part)} bytes at {at} twice"


def _encode(edit: Edit, path: Path, _: list[Path]) -> str:
    name = ("utf-16", "utf-16-be", "utf-8-sig", "utf-32", "latin-1")[edit.value % 5]
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode(name, "replace"))
    return name


def _newlines(edit: Edit, path: Path, _: list[Path]) -> str:
    name, by = (("CR", b"\r"), ("CRLF", b"\r\n"), ("none", b""))[edit.value % 3]
    path.write_bytes(path.read_bytes().replace(b"\n", by))
    return name


# ---- JSON

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0,
    1e308, float("nan"), float("inf"), "", " ", "0", "x" * 5000, "a\nb", "a\x00b", "\x1b[31m",
    "\ud800", "../../x", "/etc/passwd", "%s", [], {}, [[]], [None], [1, 2, 3], ["a"], {"a": 1},
    {"": {}},
)  # fmt: skip


def _json(edit: Edit, path: Path, _: list[Path]) -> str:
    """Change a value in a JSON document, a file of JSON lines, YAML or a safetensors header."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return _header(edit, path, data)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(edit, path, data)
    lines = data.split(b"\n") if path.suffix == ".jsonl" else [data]
    number = edit.length % len(lines)
    try:
        document = json.loads(lines[number])
    except (ValueError, RecursionError):
        return "not JSON"
    document, said = _changed(edit, document)
    lines[number] = _text(document)
    path.write_bytes(b"\n".join(lines))
    return said


def _text(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _header(edit: Edit, path: Path, data: bytes) -> str:
    try:
        (length,) = struct.unpack_from("<Q", data)
        document = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError, struct.error):
        return "not a header"
    document, said = _changed(edit, document)
    text = _text(document)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return f"header: {said}"


def _yaml(edit: Edit, path: Path, data: bytes) -> str:
    import yaml

    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError):
        return "not YAML"
    document, said = _changed(edit, document)
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8", "surrogatepass")
    return said


def _changed(edit: Edit, document: Any) -> tuple[Any, str]:
    """The document with one value, chosen among all, replaced, dropped, renamed or wrapped."""
    places = list(_places(document))
    parent, key, where = places[edit.place % len(places)]
    value = _VALUES[edit.value % len(_VALUES)]
    how = edit.value // len(_VALUES) % 5
    if parent is None:
        return value, f"document by {value!r:.40}"
    if how == 1:
        del parent[key]
        return document, f"{where} dropped"
    if how == 2 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
        return document, f"{where} renamed"
    if how == 3:
        others = [place for place in places if place[0] is not None]
        other, name, place = others[edit.length % len(others)]
        parent[key] = copy.deepcopy(other[name])
        return document, f"{where} by {place}"
    if how == 4 and type(parent[key]) is int:
        parent[key] += (edit.length % 7) - 3
        return document, f"{where} off by {(edit.length % 7) - 3}"
    parent[key] = value
    return document, f"{where} by {value!r:.40}"


def _places(document: Any) -> Iterator[tuple[Any, Any, str]]:
    yield None, None, "document"
    todo = [(document, "")]
    while todo:
        value, where = todo.pop()
        if isinstance(value, dict):
            inside = list(value.items())
        elif isinstance(value, list):
            inside = list(enumerate(value))
        else:
            continue
        for key, child in inside:
            yield value, key, f"{where}.{key}"
            todo.append((child, f"{where}.{key}"))


def _deep(edit: Edit, path: Path, _: list[Path]) -> str:
    opening, closing = ((b"[", b"]"), (b'{"a":', b"}"))[edit.value % 2]
    times = (100, 100_000)[edit.place % 2]
    path.write_bytes(opening * times + b"1" + closing * times)
    return f"{times} times {opening.decode()}"


# ---- files


def _remove(_: Edit, path: Path, __: list[Path]) -> str:
    path.unlink()
    return ""


def _special(edit: Edit, path: Path, _: list[Path]) -> str:
    path.unlink()
    kind = edit.value % 4
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == 2 else path.name)
    return ("folder", "FIFO", "link to /dev/zero", "link to itself")[kind]


def _swap(edit: Edit, path: Path, files: list[Path]) -> str:
    other = files[edit.value % len(files)]
    if not other.is_file():
        return "with what is gone"
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    return f"with {other.name}"


_CONTENTS = {
    "flip": _flip,
    "replace": _replace,
    "insert": _insert,
    "cut": _cut,
    "repeat": _repeat,
    "json": _json,
    "JSON": _json,
}
_KINDS: dict[str, Callable[[Edit, Path, list[Path]], str]] = _CONTENTS | {
    "encode": _encode,
    "newlines": _newlines,
    "deep": _deep,
    "remove": _remove,
    "special": _special,
    "swap": _swap,
}
