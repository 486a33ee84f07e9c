"""What ``shards`` asks of columns of one name, and where the kinds of columns are found.

Each package finds its own kinds by name: ``shards`` those in :mod:`shards.column_info`, others by
:func:`register`. Classes are imported when a column of their name is met, so this module is light.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

    from shards.reader import ShardSet

Types = Mapping[str, "tuple[np.dtype, tuple[int, ...]]"]
"""Name of a tensor to its type and the shape of one row, or of one value of a ragged one."""


class ColumnKind:
    """Columns of one name; this class itself stands for names that nobody has registered."""

    name: ClassVar[str] = ""
    """What its columns are called; their folders are ``<name>-<first 12 of the fingerprint>``."""
    is_working: ClassVar[bool] = False
    """Whether other columns are filled from it, even when it is complete."""
    is_removed_by_folder: ClassVar[bool] = False
    """Whether one is removed by the name of its folder alone: nothing can be trained without."""

    @classmethod
    def repair(cls, shard_set: "ShardSet", made_from: Mapping[str, Any]) -> str:
        """Return the command that makes, completes or replaces a column, and nothing else.

        Args:
            shard_set: The set that the column belongs to.
            made_from: What the column was, or is to be, made from; empty where that is not known.
        """
        return "the command that filled it"

    @classmethod
    def wrong_tensor(cls, made_from: Mapping[str, Any], found: Types) -> str | None:
        """Say which tensor is missing, or is not as wide or stored as ``made_from`` says."""
        return None

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Check what lies beside the cells and is written before the first of them.

        Raises:
            DamageError: It is not there, or not what was written.
        """


Find = Callable[[str], type[ColumnKind] | None]
"""Return the kind of a name, None for a name of somebody else."""
_FINDERS: list[Find] = []


def register(find: Find) -> None:
    """Look for kinds of columns with ``find`` too."""
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
