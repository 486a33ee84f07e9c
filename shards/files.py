"""Write files that are either complete or absent, and compute hashes that identify data.

The project publishes every file through :func:`atomic_file`: a temporary name in the same folder,
fsync, rename, fsync of the folder. A process killed at any moment leaves the former file or no
file, and at worst a temporary file that readers ignore. The writer holds a lock on its temporary
file that ends with the process, so :func:`clear_leftovers` can recognise abandoned files.
"""

import contextlib
import difflib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import resource
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, overload

import msgspec

from shards.errors import DamageError, DataError
from shards.os_errors import naming

_BLOCK_BYTES = 1 << 20
_MOST_NAMED = 3
MAX_JSON_BYTES = 64 << 20
"""Largest JSON file that is read: a manifest of 200,000 shards has half this size."""

_TEMPORARY = re.compile(r"\..+\.tmp-[0-9]+-[0-9a-f]{8}", re.DOTALL)

T = TypeVar("T")


@functools.cache
def allow_many_open_files() -> None:
    """Raise this process's limit of open files to the maximum.

    The usual 1,024 are too few for the cells of a few teachers over two million articles.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # The kernel refuses only an invalid hard limit; the soft limit then stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process or thread uses."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def fsync_folder(folder: Path) -> None:
    """Make the renames inside ``folder`` durable, if the file system supports that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        # Some network file systems refuse fsync on a folder; the rename is valid nevertheless.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make the files and names in a folder durable before the folder is renamed.

    Raises:
        OSError: The disk refused.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            fsync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    fsync_folder(folder)


def _check_replaceable(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        text = "it is not a regular file and will not be replaced; name a file"
        raise OSError(errno.EINVAL, text, str(path))


@contextlib.contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only when the block ends without an error.

    Args:
        path: Final name. Its folder must exist. A file already there is replaced.
        mode: ``"wb"`` or ``"w"`` (UTF-8, newlines as written).

    Yields:
        The open temporary file.

    Raises:
        ValueError: ``mode`` has another value.
        OSError: The file cannot be written; nothing is left behind. A device or a pipe of this
            name (``/dev/null``) is not replaced.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode is {mode!r}; expected 'wb' or 'w'")
    path = Path(path)
    _check_replaceable(path)
    text: dict[str, str] = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
    held = False
    while not held:
        temporary = temporary_name(path)
        try:
            with (
                naming(path, of=temporary),
                temporary.open(mode.replace("w", "x"), **text) as file,  # type: ignore[call-overload]
            ):
                held = _hold(file.fileno())
                if held:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder under a temporary name beside ``path``; finally remove any leftover.

    Raises:
        OSError: The folder cannot be made.
    """
    temporary = temporary_name(path)
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        _hold(descriptor)
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _hold(descriptor: int) -> bool:
    """Lock an open file during a write; return False if another process is removing it.

    On a file system without locks nobody can take a lock, and nothing is removed there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return os.fstat(descriptor).st_nlink > 0


def remove(path: Path) -> None:
    """Remove a folder with its content, or a file of any kind in its place.

    ``shutil.rmtree`` opens its argument, and would wait for ever for the writer of a FIFO. Entries
    that cannot be removed stay.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in ``folder`` whose writers were killed."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return  # the next writer in this folder reports the error
    for name in filter(_TEMPORARY.fullmatch, names):
        # An entry that cannot be opened, locked or removed belongs to others, or is already gone.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink()
            finally:
                os.close(descriptor)


def write_json_atomic(path: str | Path, obj: Any) -> None:
    """Write ``obj`` as indented JSON (UTF-8, keys in the order given) through :func:`atomic_file`.

    Raises:
        ValueError: ``obj`` holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(obj, ensure_ascii=False, indent=2, allow_nan=False)
    with atomic_file(path, "w") as file:
        file.write(text + "\n")


def open_regular(path: str | Path) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    A FIFO or a device instead of a file would block for ever or never end, so both are refused.

    Raises:
        DataError: The file is missing, cannot be read, or is not a regular file.
    """
    try:
        file = open(path, "rb", buffering=0, opener=_open_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"cannot read {path}: it is not a regular file")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(path: str | Path, *, limit: int) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes.

    Raises:
        DataError: The file is missing, cannot be read, or is not a regular file.
        DamageError: The file is larger than ``limit`` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DamageError(f"{path} has {size:,} bytes; expected at most {limit:,}")
        try:
            return file.read(limit)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error


@overload
def read_json(path: str | Path, *, limit: int = MAX_JSON_BYTES) -> Any: ...
@overload
def read_json(path: str | Path, kind: type[T], *, limit: int = MAX_JSON_BYTES) -> T: ...
def read_json(path: str | Path, kind: Any = Any, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file and check it against a type.

    Args:
        path: The file.
        kind: A dataclass, ``dict[str, int]`` or any other type that msgspec knows; ``Annotated``
            fields with ``msgspec.Meta`` state ranges and patterns. Unknown keys are ignored.
        limit: Largest size in bytes.

    Raises:
        DataError: The file is missing, cannot be read, or is not a regular file.
        DamageError: The file is too large, is not JSON, or a value has another type; the message
            names the value's place.
    """
    return parse_json(read_bytes(path, limit=limit), kind, where=path)


@overload
def parse_json(data: bytes | str, *, where: object) -> Any: ...
@overload
def parse_json(data: bytes | str, kind: type[T], *, where: object) -> T: ...
def parse_json(data: bytes | str, kind: Any = Any, *, where: object) -> Any:
    """Parse JSON and check it against a type; ``where`` names its source in the error.

    Raises:
        DamageError: ``data`` is not JSON, is nested too deeply, or a value has another type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise DamageError(f"{where} is damaged or was edited: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where} does not hold JSON: {error}") from error


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, in hex.

    Raises:
        DataError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def fingerprint(obj: Any) -> str:
    """Return the sha256 (hex) of ``obj`` as canonical JSON: sorted keys, no spaces, ASCII.

    Two objects with the same content have the same fingerprint on any machine and Python version.

    Raises:
        ValueError: ``obj`` holds NaN or an infinity.
        TypeError: ``obj`` holds a type that JSON does not have.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def did_you_mean(path: str | os.PathLike[str], *, files: bool = False) -> str:
    """Return ``; did you mean PATH?`` if a similar folder exists, else an empty string.

    Several parts of the path may be mistyped. If a part below the first has no similar name beside
    it, the suggestion ends above that part.

    Args:
        path: The missing path.
        files: Whether to suggest files too.
    """
    wanted = Path(path)
    left: list[str] = []
    while not is_folder(wanted):
        left.append(wanted.name)
        wanted = wanted.parent
    found = wanted
    while left:
        name, is_last = left.pop(), not left
        near = _near_entry(found, name, files and is_last)
        if near is None:
            break
        found /= near
    return f"; did you mean {str(found)!r}?" if found != wanted else ""


def did_you_mean_inside(folder: Path, *patterns: str) -> str:
    """Return ``; did you mean FOLDER/X?`` for inner folders that hold some file, or "".

    Args:
        folder: A folder without that file.
        patterns: Patterns of the file's path in it, such as ``*/config.json``; the first one that
            matches counts.
    """
    for pattern in patterns:
        found = [repr(str(file.parent)) for file in sorted(folder.glob(pattern))]
        if found:
            more = f" or one of {len(found) - _MOST_NAMED} more" * (len(found) > _MOST_NAMED)
            return f"; did you mean {', '.join(found[:_MOST_NAMED])}{more}?"
    return ""


def _near_entry(folder: Path, name: str, files: bool) -> str | None:
    """Return the entry of a folder that has a name, or the most similar name."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if files or entry.is_dir()]
    except OSError:  # the folder may not be listed, so there is nothing to suggest
        return None
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def is_folder(path: Path) -> bool:
    """Tell whether a folder exists; False if its name is too long to exist."""
    try:
        return path.is_dir()
    except OSError:
        return False
