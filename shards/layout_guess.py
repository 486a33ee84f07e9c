"""Guess the layout of tars made elsewhere from their first samples.

The guess is checked against the whole set (:mod:`shards.foreign_scan`): samples with members that
the guess ignores are refused, so that a set with another layout is not indexed in part.
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
# Other names of a field, tried in this order if the JSON lacks the field's own name.
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
    """Return the parts that :func:`guess_layout` guesses: :data:`MEMBERS`, and JSON fields."""
    names = set(_OTHER_NAMES) - set(fields.given())
    return frozenset(names if members else {MEMBERS, *names})


def guess_layout(tars: Sequence[Path], members: Mapping[str, str], fields: ArticleFields) -> Layout:
    """Return the layout of a set; guess missing parts from the set's first samples.

    Args:
        tars: The tars; the first one that is not empty is read.
        members: The given part: ``json`` or an article field, and the suffix of its members.
        fields: The given part: paths of article fields in the JSON object.

    Raises:
        UsageError: A member's field is unknown.
        DataError: There are no samples, or no title can be found.
        DamageError: The tar is damaged at its beginning.
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
                f" {shown_names(list(names))}; name one with --title-field, --body-field …"
            )
    elif given:
        raise UsageError(
            f"--{next(iter(given))}-field names a field of JSON members, but {tar.name} is read"
            " without JSON members; give --member json=SUFFIX"
        )
    if "title" not in chosen and JSON not in chosen:
        found = ", ".join(printable(f".{suffix}") for suffix, _ in suffixes.most_common(8))
        raise DataError(
            f"{tar}: cannot tell which member holds the title; its members end in: {found}; give"
            " --member json=SUFFIX, or --member title=SUFFIX --member body=SUFFIX"
        )
    # JSON comes first, so that a text member counts more than a JSON field.
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
    """Return the article field that a guess would assign to members with this suffix."""
    return _FIELD_OF_SUFFIX.get(suffix)


def fields_under_other_names(data: bytes, names: Collection[str]) -> set[str]:
    """Return those of some article fields that a JSON object has under any guessable name.

    Raises:
        RowError: ``data`` is not a JSON object.
    """
    keys = {name: (name, *_OTHER_NAMES[name]) for name in names if name in _OTHER_NAMES}
    # Most objects have no such name, and need not be parsed again.
    if not any(f'"{key}"'.encode() in data for others in keys.values() for key in others):
        return set()
    record = parse_object(data)
    return {
        name
        for name, others in keys.items()
        if any(str(record.get(key) or "").strip() for key in others)
    }
