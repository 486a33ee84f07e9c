"""Frozen layers' hidden states of every text, stored as a column of the article set.

Layers that are not trained give the same states for a text at every step. The states are computed
once and stored token by token; training reads them and computes only the layers above. Reading
order: ``identity`` (what determines a column), ``fill`` (computing missing cells), ``states``
(reading a batch), ``texts`` (all of it for a run).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.column_kinds import ColumnKind


def find(name: str) -> "type[ColumnKind] | None":
    """Return the kind of its columns, for :func:`shards.column_kinds.register`."""
    from trainer.frozen.column import FROZEN, FrozenStates

    return FrozenStates if name == FROZEN else None
