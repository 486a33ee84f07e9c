"""Guessing the layout of tars made elsewhere from their first samples.

A guess is held against the whole set (:mod:`shards.foreign_scan`): what it passes over is refused,
so that a set that is mostly laid out otherwise is not indexed by halves.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from shards.errors import DataError, UsageError
from shards.fields import FIELD_NAMES, ArticleFields, RowError
from shards.layout import JSON, Layout, LayoutMember, parse_object, split_name
from shards.sources import MAX_ROW_BYTES
from shards.tables import printable, shown_names
from shards.tar import TarWalk

MEMBERS = "members"
_MEMBERS_LOOKED_AT = 200
# What others call a field, tried in this order where the JSON has no field of our name.
_OTHER_NAMES = {
    "title": ("headline", "heading"),
    "body": ("text", "content", "article", "body_text"),
    "id": ("_id", "uuid", "guid"),
}
_TEXT_SUFFIXES = ("{}.txt", "{}", "{}.text")
_FIELD_OF_SUFFIX = {
    pattern.format(name): name for name in FIELD_NAMES for pattern in _TEXT_SUFFIXES
}


def guessed_parts(members: Mapping[str, str], fields: ArticleFields) -> frozenset[str]:
    """Return what :func:`guess_layout` guesses: :data:`MEMBERS`, and fields of JSON objects."""
    names = set(_OTHER_NAMES) - set(fields.given())
    return frozenset(names if members else {MEMBERS, *names})


def guess_layout(tars: Sequence[Path], members: Mapping[str, str], fields: ArticleFields) -> Layout:
    """Return the layout of a set, guessed from its first samples where it is not given.

    Args:
        tars: The tars; the first that is not empty is looked into.
        members: Given: ``json`` or an article field, and the suffix of the members that hold it.
        fields: Given: paths of article fields in the JSON object.

    Raises:
        UsageError: If a member's field is unknown.
        DataError: If there are no samples, or no title can be found.
        DamageError: If the tar is damaged at its beginning.
    """
    for name in members:
        if name not in (JSON, *FIELD_NAMES):
            raise UsageError(
                f"--member {name}={members[name]}: {name!r} is neither {JSON} nor one of"
                f" {', '.join(FIELD_NAMES)}"
            )
    members = {name: suffix.lower().removeprefix(".") for name, suffix in members.items()}
    for tar in tars:
        suffixes, records = _first_samples(tar, members.get(JSON))
        if suffixes:
            break
    else:
        raise DataError(f"{tars[0]}: there are no samples to index, here or in the other tars")
    chosen = dict(members) or _guess_members(suffixes, records)
    given = fields.given()
    if JSON in chosen:
        names = dict.fromkeys(str(k) for record in records.get(chosen[JSON], ()) for k in record)
        given = _guess_fields(set(names), given, set(chosen)) | given
        if names and "title" not in {*names, *given, *chosen}:
            raise DataError(
                f"{tar}: the JSON of its first samples has no title; its fields are"
                f" {shown_names(list(names))}; say which to use with --title-field, --body-field …"
            )
    elif given:
        raise UsageError(
            f"--{next(iter(given))}-field names a field of JSON members, and {tar.name} is read"
            " without any; give --member json=SUFFIX"
        )
    if "title" not in chosen and JSON not in chosen:
        found = ", ".join(printable(f".{suffix}") for suffix, _ in suffixes.most_common(8))
        raise DataError(
            f"{tar}: cannot tell which member holds the title; its members end in: {found}; give"
            " --member json=SUFFIX, or --member title=SUFFIX --member body=SUFFIX"
        )
    # The JSON first, so that a text of its own counts more than a field.
    order = [JSON, *FIELD_NAMES]
    return Layout(
        tuple(LayoutMember(chosen[name], name) for name in order if name in chosen),
        given,
    )


def _first_samples(
    tar: Path, json_suffix: str | None
) -> tuple[Counter[str], dict[str, list[dict]]]:
    """Return the suffixes of the first members, and the JSON objects among them by suffix."""
    suffixes: Counter[str] = Counter()
    records: dict[str, list[dict]] = {}
    with TarWalk(tar, hashlib.sha256()) as walk:
        for member in walk:
            if suffixes.total() == _MEMBERS_LOOKED_AT:
                break
            parts = split_name(member.name.decode("utf-8", "replace"))
            if parts is None or not member.is_file:
                continue
            suffix = parts[1]
            suffixes[suffix] += 1
            if suffix == json_suffix or suffix.split(".")[-1] == "json":
                if member.size > MAX_ROW_BYTES:
                    continue
                try:
                    records.setdefault(suffix, []).append(parse_object(walk.data()))
                except RowError:
                    continue
    return suffixes, records


def _guess_members(suffixes: Counter[str], records: Mapping[str, list]) -> dict[str, str]:
    chosen = {}
    if records:
        chosen[JSON] = JSON if JSON in records else max(records, key=lambda s: suffixes[s])
    for name in FIELD_NAMES:
        for pattern in _TEXT_SUFFIXES:
            if pattern.format(name) in suffixes:
                chosen[name] = pattern.format(name)
                break
    return chosen


def _guess_fields(keys: set[str], given: Mapping[str, str], texts: set[str]) -> dict[str, str]:
    guessed = {}
    for name, others in _OTHER_NAMES.items():
        if name in given or name in texts or name in keys:
            continue
        found = next((other for other in others if other in keys), None)
        if found is not None:
            guessed[name] = found
    return guessed


def looks_like(suffix: str) -> str | None:
    """Return the article field whose text a member of this suffix would be guessed to be."""
    return _FIELD_OF_SUFFIX.get(suffix)


def fields_under_other_names(data: bytes, names: Collection[str]) -> set[str]:
    """Return those of some article fields that a JSON object has under any name that is guessed.

    Raises:
        RowError: If ``data`` is not a JSON object.
    """
    keys = {name: (name, *_OTHER_NAMES[name]) for name in names if name in _OTHER_NAMES}
    # Most objects have none of them, and are not parsed again for that.
    if not any(f'"{key}"'.encode() in data for others in keys.values() for key in others):
        return set()
    record = parse_object(data)
    return {
        name
        for name, others in keys.items()
        if any(str(record.get(key) or "").strip() for key in others)
    }
