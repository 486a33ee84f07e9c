"""Teacher columns that nobody names any more: found by what is kept, removed on request alone."""

import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.columns import ColumnInfo, describe, list_columns
from shards.files import fsync_folder, read_json
from shards.reader import ShardSet
from trainer.config.load import read_recipe
from trainer.errors import ColumnError
from trainer.teacher_server.identity import CLICKS, EXACT, LOGITS, NEWS, TEXT

TEACHER_COLUMNS = (TEXT, LOGITS, NEWS, CLICKS, EXACT)


@dataclass(frozen=True)
class Column:
    """A teacher's column set on disk."""

    shard_set: ShardSet
    info: ColumnInfo
    bytes: int


def unnamed_columns(shard_sets: Sequence[ShardSet], kept_weights: Iterable[str]) -> list[Column]:
    """Teacher columns whose teacher's weights are not among those that are kept.

    Columns of other kinds, folders that are no column set, and links are never listed.

    Args:
        shard_sets: Sets to look beside.
        kept_weights: sha256 of the weights of the teachers to keep.
    """
    kept = set(kept_weights)
    return [
        Column(shard_set, info, sum(f.stat().st_size for f in info.folder.iterdir()))
        for shard_set in shard_sets
        for name in TEACHER_COLUMNS
        for info in list_columns(shard_set, name)
        if _is_inside(shard_set, info.folder)
        and info.made_from.get("teacher_weights_sha256") not in kept
    ]


def teachers_of_recipe(recipe: str) -> list[str]:
    """The teachers that a recipe (by name or path) or the ``config.json`` of a run names.

    Raises:
        ConfigError: It is no recipe.
        DataError: It is no JSON file of a run.
    """
    if recipe.endswith(".json"):
        section = read_json(recipe).get("teachers") or {}
        return [str(model) for model in section.get("models") or ()]
    return [str(model) for model in read_recipe(recipe).get("teachers.models") or ()]


def remove_column(shard_set: ShardSet, name: str, made_from: dict[str, Any]) -> bool:
    """Remove a teacher's column set if it is there; whether it was.

    Raises:
        ColumnError: It is no teacher's, or cannot be removed.
    """
    return remove_folder(shard_set, describe(shard_set, name, made_from))


def remove_folder(shard_set: ShardSet, info: ColumnInfo) -> bool:
    """Remove the folder of a teacher's column set.

    It is renamed first, so that no reader finds half of it, and of two processes that remove it
    one does.

    Raises:
        ColumnError: It is no teacher's, lies elsewhere, or cannot be removed.
    """
    if info.name not in TEACHER_COLUMNS:
        raise ColumnError(f"{info.folder} holds {info.name!r}, which is no teacher's column")
    if not info.folder.is_dir():
        return False
    if not _is_inside(shard_set, info.folder):
        raise ColumnError(f"{info.folder} is a link or lies outside {shard_set.columns_dir}")
    leaving = info.folder.with_name(f".removing-{info.folder.name}-{secrets.token_hex(4)}")
    try:
        info.folder.rename(leaving)
        fsync_folder(leaving.parent)
        shutil.rmtree(leaving)
    except FileNotFoundError:
        return False  # another process was first
    except OSError as error:
        raise ColumnError(f"cannot remove {info.folder}: {error.strerror or error}") from error
    return True


def _is_inside(shard_set: ShardSet, folder: Path) -> bool:
    """Whether a folder is a real one, directly in the set's folder of columns."""
    return folder.parent == shard_set.columns_dir and not folder.is_symlink() and folder.is_dir()
