"""Register kinds of columns: what ``shards`` must know about columns of one name.

Each package finds its own kinds by name: ``shards`` those in :mod:`shards.column_info`, others by
:func:`register`. A class is imported at the first column of its name, so this module is light.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from shards.reader import ShardSet

Types = Mapping[str, "tuple[np.dtype, tuple[int, ...]]"]
"""Name of a tensor to its type and the shape of one row, or of one value of a ragged tensor."""


class ColumnKind:
    """Columns of one name; this class itself stands for unregistered names."""

    name: ClassVar[str] = ""
    """Name of the columns; their folders are ``<name>-<first 12 of the fingerprint>``."""
    is_working: ClassVar[bool] = False
    """Whether other columns are filled from this one, even when it is complete."""
    is_removed_by_folder: ClassVar[bool] = False
    """Whether only the name of its folder removes a column, because training needs it."""

    @classmethod
    def repair(cls, shard_set: "ShardSet", made_from: Mapping[str, Any]) -> str:
        """Return the command that makes, completes or replaces a column, and nothing else.

        Args:
            shard_set: The set that the column belongs to.
            made_from: Source of the existing or new column; empty if it is unknown.
        """
        return "the command that filled it"

    @classmethod
    def wrong_tensor(cls, made_from: Mapping[str, Any], found: Types) -> str | None:
        """Name a tensor that is missing, or whose width or type contradicts ``made_from``."""
        return None

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Check files that are written before the first cell.

        Raises:
            DamageError: A file is missing or damaged.
        """


Find = Callable[[str], type[ColumnKind] | None]
"""Function that returns the kind of a name, or None for a name of another package."""
_FINDERS: list[Find] = []


def register(find: Find) -> None:
    """Add ``find`` to the functions that find kinds of columns."""
    _FINDERS.append(find)


def kind_of(name: str) -> type[ColumnKind]:
    """Return the kind of the columns of a name."""
    found = (find(name) for find in _FINDERS)
    return next((kind for kind in found if kind is not None), ColumnKind)


def repair_command(
    shard_set: "ShardSet", name: str, made_from: Mapping[str, Any] | None = None
) -> str:
    """Return :meth:`ColumnKind.repair` of the kind of a name."""
    return kind_of(name).repair(shard_set, made_from or {})
