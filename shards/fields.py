"""Which field of an input becomes which field of an article.

A field is named by its key, or by a path of keys: ``headline.main``. A number picks an item of a
list (``authors.0``); a list without a number is gone through item by item, and a filter in square
brackets keeps the items whose key fits a pattern: ``document[name=body_par_*].value`` collects the
paragraphs of ``{"document": [{"name": "body_par_000", "value": "…"}, …]}``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from shards.errors import DataError, UsageError

_STEP = re.compile(r"(?P<key>[^.\[\]]+)(?:\[(?P<name>[^\[\]=]+)=(?P<pattern>[^\[\]]*)\])?(?:\.|$)")
# A list of texts is joined in these fields; of the others the first item is taken.
_JOINED_BY = {"title": " ", "abstract": "\n", "body": "\n"}
_MAX_ID_CHARS = 1024
# Key, key of the filter (or None), pattern of the filter.
_Step = tuple[str, str | None, str]


class RowError(Exception):
    """A row is to be refused; ``reason`` is the key under which it is counted."""

    def __init__(self, reason: str) -> None:
        """Remember the reason."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ArticleFields:
    """The path of each article field in the input; None means: the field's own name.

    A field that is named here must occur in the input; one that is not may be missing (but for
    ``id`` and ``title``, which every article has).
    """

    id: str | None = None
    title: str | None = None
    body: str | None = None
    abstract: str | None = None
    category: str | None = None
    subcategory: str | None = None
    time: str | None = None
    url: str | None = None

    def given(self) -> dict[str, str]:
        """Return the fields that were named, with their paths."""
        return {name: path for name, path in asdict(self).items() if path is not None}


FIELD_NAMES = tuple(item.name for item in fields(ArticleFields))


class FieldReader:
    """Takes the fields of an article out of the records of one input."""

    def __init__(
        self, article_fields: ArticleFields, wanted: tuple[str, ...] = FIELD_NAMES
    ) -> None:
        """Read the paths.

        Args:
            article_fields: The mapping.
            wanted: The fields to take.

        Raises:
            UsageError: If a path cannot be understood.
        """
        self._given = {k: v for k, v in article_fields.given().items() if k in wanted}
        self._paths: dict[str, tuple[str, list[_Step]]] = {
            name: (name, [(name, None, "")]) for name in wanted
        }
        for name, path in self._given.items():
            self._paths[name] = (path, parse_path(name, path))
        self._never_seen = set(self._given)
        self._keys: list[str] = []

    def required_columns(self, required: tuple[str, ...]) -> list[str]:
        """Return the columns that a table must have: of required fields and of named ones."""
        needed = dict.fromkeys([*required, *self._given])
        # A path into nested values: the table has its first key as a column.
        return [
            steps[0][0] if name in self._given and len(steps) > 1 else path
            for name in needed
            for path, steps in [self._paths[name]]
        ]

    def read(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields of one record that are there and not empty, white space stripped.

        Raises:
            RowError: If a field holds something that is not text or a number.
        """
        if not self._keys:
            self._keys = [str(key) for key in record]
        found: dict[str, str] = {}
        for name, (path, steps) in self._paths.items():
            # A key may itself contain dots.
            values = [record[path]] if path in record else list(_walk(record, steps))
            if values:
                self._never_seen.discard(name)
            text = _text(name, values)
            if text:
                found[name] = text
        return found

    def seen(self) -> dict[str, list[str]]:
        """Return what :meth:`note` takes: the fields that occurred, and the keys of a first row."""
        return {"seen": sorted(set(self._paths) - self._never_seen), "keys": self._keys}

    def note(self, seen: Sequence[str], keys: Sequence[str]) -> None:
        """Count as read here what another reader has read of the same input."""
        self._never_seen.difference_update(seen)
        self._keys = self._keys or list(keys)

    def check_all_seen(self, source: str) -> None:
        """Check, at the end of an input, that every named field occurred in some row.

        Raises:
            DataError: If one did not: its name is surely misspelt.
        """
        for name in sorted(self._never_seen):
            raise DataError(
                f"{source}: no row has the field {self._given[name]!r} (--{name}-field); the first"
                f" row has {', '.join(self._keys) or 'no fields'}"
            )


def parse_path(name: str, path: str) -> list[_Step]:
    """Parse a path into steps (key, name of the filter's key or None, the filter's pattern).

    Raises:
        UsageError: If it cannot be understood.
    """
    steps: list[_Step] = []
    at = 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            break
        steps.append((match["key"], match["name"], match["pattern"] or ""))
        at = match.end()
    if not steps or at < len(path) or path.endswith("."):
        raise UsageError(
            f"--{name}-field {path!r} is not a path; expected, for example, body, content.text or"
            " document[name=body_par_*].value"
        )
    return steps


def _walk(value: Any, steps: list[_Step]) -> Iterator[Any]:
    """Yield every value that the steps lead to, going through lists."""
    if not steps:
        yield value
        return
    (key, name, pattern), rest = steps[0], steps[1:]
    if isinstance(value, list):
        if key.isascii() and key.isdigit():
            if int(key) < len(value):
                yield from _walk(value[int(key)], rest)
        else:
            for item in value:
                yield from _walk(item, steps)
        return
    if not isinstance(value, Mapping) or key not in value:
        return
    inner = value[key]
    if name is None:
        yield from _walk(inner, rest)
    elif isinstance(inner, list):
        for item in inner:
            if isinstance(item, Mapping) and fnmatchcase(str(item.get(name, "")), pattern):
                yield from _walk(item, rest)


def _text(name: str, values: list[Any]) -> str:
    parts = [part for value in values for part in _leaves(name, value)]
    if name in _JOINED_BY:
        text = _JOINED_BY[name].join(parts)
        return " ".join(text.split()) if name == "title" else text.strip()
    text = parts[0] if parts else ""
    if name == "id" and len(text) > _MAX_ID_CHARS:
        raise RowError("id too long")
    return text


def _leaves(name: str, value: Any) -> Iterator[str]:
    # NaN, which alone differs from itself, is what pandas writes for a missing text.
    if value is None or (isinstance(value, float) and value != value):
        return
    if isinstance(value, str):
        stripped = value.strip()
        if stripped:
            yield stripped
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(name, item)
    elif hasattr(value, "isoformat"):
        # Dates and times of Parquet.
        yield value.isoformat()
    else:
        raise RowError(f"{name} is not text")
