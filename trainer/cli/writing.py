"""What a command was told to write: whole or not at all, and a mistake in one line."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files import fsync_folder, fsync_tree, temporary_name
from shards.os_errors import naming
from trainer.errors import DataError, UsageError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder that ``out`` is to be in, for a block that writes it.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            yield
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def make_folder_of(out: Path) -> None:
    """Before long work: find at once that there can be no such file.

    Raises:
        DataError: Its folder cannot be made.
    """
    with writing(out):
        pass


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder under a temporary name, which becomes ``out`` when the block ends without an error.

    Raises:
        UsageError: ``out`` exists.
        DataError: It cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; name another folder or remove it")
    building = temporary_name(out)
    try:
        with writing(out):
            building.mkdir()
            yield building
            fsync_tree(building)
            building.rename(out)
            fsync_folder(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
