"""Pruning: find teacher columns that are not in use, and remove them on request only."""

from collections.abc import Iterable, Sequence

from shards.column_folders import ColumnFolder, column_folders
from shards.reader import ShardSet
from trainer.teacher_server.kinds import KINDS


def unnamed_columns(
    shard_sets: Sequence[ShardSet], kept_weights: Iterable[str]
) -> list[ColumnFolder]:
    """Find teacher columns whose teacher's weights are not among those to keep.

    Columns of other kinds, folders that are not columns, and links are never listed.

    Args:
        shard_sets: Sets whose columns are examined.
        kept_weights: sha256 of the weights of the teachers to keep.
    """
    kept = set(kept_weights)
    return [
        column
        for shard_set in shard_sets
        for column in column_folders(shard_set)
        if column.info is not None
        and column.kind in KINDS
        and not column.folder.is_symlink()
        and column.info.made_from.get("teacher_weights_sha256") not in kept
    ]
