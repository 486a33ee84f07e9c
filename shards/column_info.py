"""Identify a column set: its name, source, fingerprint and folder, and how two sets differ."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.column_kinds import ColumnKind, register
from shards.errors import ColumnError, DamageError, DataError
from shards.files import fingerprint, read_json
from shards.manifest import Sha256
from shards.reader import ShardSet
from shards.text_fields import TEXT_FIELDS, tokenize_command

COLUMN_FILE = "column.json"
TOKENS = "tokens"
TOKENIZER_FOLDER = "tokenizer"
"""Folder of the tokenizer in a token column's folder."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ColumnInfo:
    """Content and path of a column set's ``column.json``."""

    folder: Path
    name: str
    made_from: dict[str, Any]
    fingerprint: str


def describe(shard_set: ShardSet, name: str, made_from: Mapping[str, Any]) -> ColumnInfo:
    """Derive fingerprint and folder of the column set ``name`` made from this; read no file.

    The shard set's fingerprint is always a part of ``made_from``, under ``shard_set``.

    Raises:
        ColumnError: the name is not valid as a folder name.
    """
    if not _NAME.fullmatch(name):
        raise ColumnError(f"column name {name!r}: expected letters, digits, '.', '_' and '-'")
    # Convert through JSON, so that the types equal those of a stored column.json (lists, not
    # tuples).
    complete = json.loads(json.dumps({"shard_set": shard_set.fingerprint, **made_from}))
    digest = fingerprint({"name": name, "made_from": complete})
    return ColumnInfo(shard_set.columns_dir / f"{name}-{digest[:12]}", name, complete, digest)


@dataclass(frozen=True)
class _Stored:
    """The fields of ``column.json``."""

    name: str
    made_from: dict[str, Any]
    fingerprint: Sha256


def read_info(folder: Path) -> ColumnInfo:
    """Read a column set's ``column.json``.

    Raises:
        ColumnError: the folder is not a column set.
        DamageError: ``column.json`` is damaged.
    """
    path = folder / COLUMN_FILE
    if not path.exists():
        raise ColumnError(f"{folder} is not a column set: it has no {COLUMN_FILE}")
    stored = read_json(path, _Stored)
    try:
        expected = fingerprint({"name": stored.name, "made_from": stored.made_from})
    except RecursionError as error:
        raise DamageError(f"{path} does not describe a column set: {error}") from error
    whole = stored.fingerprint == expected and folder.name == f"{stored.name}-{expected[:12]}"
    if not whole or not _NAME.fullmatch(stored.name):
        raise DamageError(
            f"{path} was changed: its fingerprint does not fit its content; delete it, and the "
            "command that filled the column writes it again"
        )
    return ColumnInfo(folder, stored.name, stored.made_from, stored.fingerprint)


def list_columns(shard_set: ShardSet, name: str | None = None) -> list[ColumnInfo]:
    """List the column sets beside a shard set by folder name; ``name`` selects some.

    The list includes columns made from an older version of the set (see ``made_from["shard_set"]``)
    and omits folders without a readable ``column.json``.
    """
    infos = []
    if shard_set.columns_dir.is_dir():
        for folder in sorted(shard_set.columns_dir.iterdir()):
            try:
                info = read_info(folder)
            except DataError:
                continue
            if name is None or info.name == name:
                infos.append(info)
    return infos


class _Tokens(ColumnKind):
    """Token ids of an article set."""

    name = TOKENS
    is_removed_by_folder = True

    @classmethod
    def repair(cls, shard_set: ShardSet, made_from: Mapping[str, Any]) -> str:
        """Return the command that tokenizes the set in the same way."""
        own = describe(shard_set, cls.name, made_from).folder / TOKENIZER_FOLDER
        stored = made_from.get("fields")
        fields = stored if isinstance(stored, list) else []
        limits = {
            field: made_from[f"{field}_tokens"]
            for field in TEXT_FIELDS
            if field in fields and f"{field}_tokens" in made_from
        }
        return tokenize_command(shard_set.location, own if own.is_dir() else "TOKENIZER", limits)


class _Clicks(ColumnKind):
    """Histories and candidates of an impression set."""

    name = "clicks"
    is_removed_by_folder = True

    @classmethod
    def repair(cls, shard_set: ShardSet, made_from: Mapping[str, Any]) -> str:
        """Return the command that builds the set; an existing set gets its missing column."""
        location = shlex.quote(shard_set.location)
        return f"tnr shards build --clicks LOG --article-set SET --out {location}"


register({kind.name: kind for kind in (_Tokens, _Clicks)}.get)


def removal_command(shard_set: ShardSet, folder: Path) -> str:
    """Return the command that removes a column set."""
    return f"tnr shards columns {shlex.quote(shard_set.location)} --remove {folder.name} --yes"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries, with keys joined by dots."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return out


def differing_fields(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Describe every field in which a stored ``made_from`` differs from the requested one."""
    stored, asked = _flat(dict(there)), _flat(dict(here))
    phrases = []
    for key in sorted(stored.keys() | asked.keys()):
        if key not in stored:
            phrases.append(f"{key} is absent in the column, asked for {asked[key]!r}")
        elif key not in asked:
            phrases.append(f"{key} is {stored[key]!r} in the column, not asked for")
        elif stored[key] != asked[key]:
            phrases.append(f"{key} is {stored[key]!r} in the column, asked for {asked[key]!r}")
    return phrases
