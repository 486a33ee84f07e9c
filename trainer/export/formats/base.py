"""What an export format must say and do."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from trainer.export.folder import Export


class ExportFormat(ABC):
    """A kind of folder that an exported model can be written as.

    ``tnr export --help`` imports every format: import torch, transformers and the like inside
    methods.
    """

    summary: ClassVar[str]
    """What the folder holds and who opens it, in one line for ``--help``."""

    def __init__(self, name: str) -> None:
        """Note the name that the registry gives it."""
        self.name = name

    def problem(self, export: "Export") -> str | None:
        """Say why an export cannot be written in this format, and what to do instead.

        Returns:
            None where it can.
        """
        return None

    @abstractmethod
    def write(self, export: "Export", folder: Path) -> None:
        """Write an export for which there is no :meth:`problem`.

        Args:
            export: What to write. ``load_model`` compares its weights with their sha256; where
                files are copied instead, call ``check_weights``.
            folder: An empty folder, which is removed if an error is raised.
        """
