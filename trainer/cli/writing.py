"""Writing of output files: whole or not at all, with one-line errors."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.files import fsync_folder, fsync_tree, temporary_name
from shards.os_errors import naming
from trainer.errors import DataError, UsageError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder of ``out`` for a block that writes ``out``.

    Raises:
        DataError: ``out`` cannot be written.
    """
    try:
        with naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            yield
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from error


def make_folder_of(out: Path) -> None:
    """Make the folder of ``out`` before long work, so bad paths fail early.

    Raises:
        DataError: The folder cannot be made.
    """
    with writing(out):
        pass


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``out`` if the block ends without an error.

    Raises:
        UsageError: ``out`` exists.
        DataError: ``out`` cannot be written.
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
