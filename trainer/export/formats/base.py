"""Interface of an export format."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from trainer.export.folder import Export


class ExportFormat(ABC):
    """A format in which an exported model can be written.

    ``tnr export --help`` imports every format, so import torch, transformers and the like inside
    methods.
    """

    summary: ClassVar[str]
    """Content of the folder and the program that opens it, in one line for ``--help``."""

    def __init__(self, name: str) -> None:
        """Store the name from the registry."""
        self.name = name

    def problem(self, export: "Export") -> str | None:
        """Return why an export cannot be written in this format, and what to do instead.

        Returns:
            The reason; None if the export can be written.
        """
        return None

    @abstractmethod
    def write(self, export: "Export", folder: Path) -> None:
        """Write an export for which :meth:`problem` returned None.

        Args:
            export: Export to write. ``load_model`` compares its weights with their sha256; if files
                are copied instead, call ``check_weights``.
            folder: An empty folder; it is removed if an error is raised.
        """
