"""The project's own format: the exported folder, file by file."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import DataError
from trainer.export.formats.base import ExportFormat

if TYPE_CHECKING:
    from trainer.export.folder import Export


class Tnr(ExportFormat):
    """A copy of the export."""

    summary = "the whole model and tnr.json, as every tnr command reads it"

    def write(self, export: "Export", folder: Path) -> None:
        """Copy all files."""
        export.check_weights()
        copy_entries(export.folder, export.folder.rglob("*"), folder)


def copy_entries(source: Path, entries: Iterable[Path], folder: Path) -> None:
    """Copy entries of an export, contents only; older weights had private permissions.

    A device would never end, and a link may point to any file on this machine. Only the local
    Hugging Face cache consists of links, to its own ``blobs``.

    Args:
        source: The export.
        entries: Files and folders in it.
        folder: Folder to write to.

    Raises:
        DataError: An entry is neither a regular file nor a folder, or a link points outside the
            export.
    """
    inside = [source.resolve()]
    if source.resolve().parent.name == "snapshots":
        inside.append(source.resolve().parents[1] / "blobs")
    for entry in sorted(entries):
        if entry.is_symlink() and not any(map(entry.resolve().is_relative_to, inside)):
            raise DataError(
                f"{entry} is a link to {entry.resolve()}, outside the export; put the file in its "
                "place, or remove the link"
            )
        copy = folder / entry.relative_to(source)
        if entry.is_dir() and not entry.is_symlink():
            copy.mkdir()
        elif entry.is_file():
            shutil.copyfile(entry, copy)
        else:
            raise DataError(f"{entry} is not a regular file; remove it")
