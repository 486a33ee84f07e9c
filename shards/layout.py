"""Describe how the samples of tars made elsewhere become articles.

The manifest of such a set has a ``layout``: the members of a sample to read, in the order of the
records of the index, and the content of each: a JSON object (with its fields named by paths, as in
``tnr shards build``) or the text of one field.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from shards.fields import FIELD_NAMES, ArticleFields, FieldReader, RowError
from shards.heads import HEAD_BYTES, wide_encoding
from shards.sources import is_deep

JSON = "json"
_BOM = b"\xef\xbb\xbf"
# Split as webdataset does: folders belong to the key, and the first dot of the file name ends it.
_NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into (key, suffix) like webdataset; None without a suffix.

    Members that webdataset reserves for its own notes (``__meta__/...``) give None too.
    """
    match = _NAME.fullmatch(name)
    if match is None or _META.match(name):
        return None
    return match[1], match[2].lower()


@dataclass(frozen=True)
class LayoutMember:
    """One kind of member of a sample."""

    suffix: str
    """The part after the first dot of the file name, in lower case: ``json``, ``title.txt``."""
    field: str
    """``json`` for a JSON object, or the article field that the member's text is."""


@dataclass(frozen=True)
class Layout:
    """What to read from each sample."""

    members: tuple[LayoutMember, ...]
    fields: dict[str, str] = field(default_factory=dict)
    """Paths of article fields in the JSON object, if they differ from the fields' names."""

    def to_dict(self) -> dict[str, Any]:
        """Return the layout in the form of the manifest."""
        return {"members": [vars(member) for member in self.members], "fields": self.fields}

    @classmethod
    def from_dict(cls, data: Any) -> "Layout":
        """Parse the output of :meth:`to_dict`.

        Raises:
            ValueError: The data have another form.
        """
        if not isinstance(data, Mapping):
            raise ValueError("layout is not an object")
        members, fields = data.get("members"), data.get("fields", {})
        if not isinstance(members, Sequence) or isinstance(members, str) or not members:
            raise ValueError("layout.members is not a list")
        parsed = []
        for member in members:
            if not isinstance(member, Mapping) or set(member) != {"suffix", "field"}:
                raise ValueError(f"layout.members: {member!r} is not a suffix and a field")
            suffix, name = member["suffix"], member["field"]
            if not isinstance(suffix, str) or name not in (JSON, *FIELD_NAMES):
                raise ValueError(f"layout.members: {member!r} is not a suffix and a field")
            parsed.append(LayoutMember(suffix, name))
        for what in ("suffix", "field"):
            if len({getattr(member, what) for member in parsed}) != len(parsed):
                raise ValueError(f"layout.members: the same {what} occurs twice")
        if not isinstance(fields, Mapping) or not all(
            name in FIELD_NAMES and isinstance(path, str) for name, path in fields.items()
        ):
            raise ValueError("layout.fields does not name fields of articles")
        return cls(tuple(parsed), dict(fields))


class ArticleDecoder:
    """Makes articles from the members of samples.

    Args:
        layout: What to read from each sample.
        strict: Refuse samples that may no longer be indexed; False for existing indexes, which may
            have such samples.

    Raises:
        UsageError: A path of the layout's fields is invalid.
    """

    def __init__(self, layout: Layout, *, strict: bool = False) -> None:
        """Parse the paths."""
        self.layout = layout
        self._strict = strict
        self._readers = [
            FieldReader(ArticleFields(**layout.fields), strict=strict)
            if member.field == JSON
            else FieldReader(ArticleFields(), (member.field,), strict=strict)
            for member in layout.members
        ]

    def fields(self, member: int, data: bytes) -> dict[str, str]:
        """Return the article fields of one member that are not empty.

        Raises:
            RowError: The member is not UTF-8, not a JSON object, or a field is not text.
        """
        encoding = wide_encoding(data[:HEAD_BYTES]) if self._strict else None
        if encoding is not None:
            raise RowError(f"{encoding} and not UTF-8")
        if self.layout.members[member].field == JSON:
            if self._strict and is_deep(data):
                raise RowError("bad JSON")
            try:
                return self._readers[member].read(parse_object(data))
            except RecursionError as error:  # nested about a thousand deep
                raise RowError("bad JSON") from error
        try:
            text = data.removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError("bad UTF-8") from error
        return self._readers[member].read({self.layout.members[member].field: text})

    def article(self, key: str, contents: Sequence[bytes | None]) -> dict[str, str]:
        """Return a sample as an article: id, title, body, and its other fields.

        The id is the field, or else the key; the body is the field, or else the abstract, or else
        empty. If two members hold one field, the later one in the layout counts.

        Args:
            key: The sample's key.
            contents: The data of each member; None for a member that the sample lacks.

        Raises:
            RowError: A member cannot be read, or the title is missing.
        """
        found: dict[str, str] = {}
        for member, data in enumerate(contents):
            if data is not None:
                found |= self.fields(member, data)
        if "title" not in found:
            raise RowError("missing title")
        article = {
            "id": found.get("id", key),
            "title": found["title"],
            "body": found.get("body") or found.get("abstract", ""),
        }
        return article | {name: text for name, text in found.items() if name not in article}

    def check_all_seen(self, source: str) -> None:
        """Check at the end that every path of the layout occurred in some sample.

        Raises:
            DataError: A path found none; it is probably misspelt.
        """
        for reader in self._readers:
            reader.check_all_seen(source)


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse ``data`` as a JSON object.

    Raises:
        RowError: ``data`` is not a JSON object.
    """
    try:
        record = orjson.loads(data.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise RowError("bad UTF-8") from error
        raise RowError("bad JSON") from error
    if not isinstance(record, dict):
        raise RowError("not a JSON object")
    return record
