"""The kind of column that holds frozen layers' states."""

from collections.abc import Mapping
from typing import Any

from shards.column_kinds import ColumnKind
from shards.reader import ShardSet

FROZEN = "frozen-states"
"""Name of the column."""


class FrozenStates(ColumnKind):
    """States of every token of a text, at the cut below the trained layers."""

    name = FROZEN

    @classmethod
    def repair(cls, shard_set: ShardSet, made_from: Mapping[str, Any]) -> str:
        """Return the command of a run that fills the missing cells."""
        return "tnr train RECIPE --model.frozen_states TYPE"
