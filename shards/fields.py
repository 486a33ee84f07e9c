"""Map the fields of an input to the fields of an article.

A field is named by its key, or by a path of keys: ``headline.main``. A number selects an item of a
list (``authors.0``); a list without a number is read item by item, and a filter in square brackets
keeps the items whose key fits a pattern: ``document[name=body_par_*].value`` collects the
paragraphs of ``{"document": [{"name": "body_par_000", "value": "…"}, …]}``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from shards.errors import DataError, UsageError
from shards.tables import FIELD_OPTIONS, shown_names

_STEP = re.compile(r"(?P<key>[^.\[\]]+)(?:\[(?P<name>[^\[\]=]+)=(?P<pattern>[^\[\]]*)\])?(?:\.|$)")
# In these fields a list of texts is joined; in other fields its first item is taken.
_JOINED_BY = {"title": " ", "abstract": "\n", "body": "\n"}
_MAX_ID_CHARS = 1024
FLOAT_TYPES = {"double": 53, "float": 24, "halffloat": 11}
"""Bits of the significand: larger whole numbers are rounded."""
_DOUBLE_BITS = FLOAT_TYPES["double"]
_MAX_KEYS = 200
_MAX_SHOWN_DEPTH = 8
# Forms that pandas and spreadsheets give to whole numbers: 17.0, 1.7e+16, 1.7E+16.
_WHOLE = re.compile(r"[+-]?[0-9]+\.0+")
_EXPONENT = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?[eE]\+[0-9]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ufeff]")
# Key, key of the filter (or None), pattern of the filter.
_Step = tuple[str, str | None, str]


class RowError(Exception):
    """A row must be refused; ``reason`` is the key under which the row is counted."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class RoundedFloat(float):
    """A number that its type may have rounded."""

    def __new__(cls, value: float, kind: str, bits: int) -> "RoundedFloat":
        """Make a number of the type ``kind``, exact to ``bits`` bits."""
        made = super().__new__(cls, value)
        made.kind, made.bits = kind, bits
        return made

    kind: str
    bits: int


@dataclass(frozen=True, kw_only=True)
class ArticleFields:
    """The path of each article field in the input; None means the field's name.

    A field that is named here must occur in the input; other fields may be missing, except ``id``
    and ``title``, which every article has.
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
    """Extracts the fields of an article from the records of one input."""

    def __init__(
        self,
        article_fields: ArticleFields,
        wanted: tuple[str, ...] = FIELD_NAMES,
        *,
        strict: bool = True,
        untyped: bool = False,
    ) -> None:
        """Parse the paths.

        Args:
            article_fields: The path of each field.
            wanted: The fields to extract.
            strict: Refuse ids that cannot serve as keys; False for an existing set with such ids.
            untyped: Whether numbers come as text, as in CSV: an id ``17.0`` is then a number.

        Raises:
            UsageError: A path is invalid.
        """
        self._strict, self._untyped = strict, untyped
        self._given = {k: v for k, v in article_fields.given().items() if k in wanted}
        self._paths: dict[str, tuple[str, list[_Step]]] = {
            name: (name, [(name, None, "")]) for name in wanted
        }
        for name, path in self._given.items():
            self._paths[name] = (path, parse_path(name, path))
        self._never_seen = set(self._paths)
        self._keys: list[str] = []

    def required_columns(self, required: tuple[str, ...]) -> list[str]:
        """Return the columns that a table must have: those of required and of named fields."""
        needed = dict.fromkeys([*required, *self._given])
        # For a path into nested values, the table has a column named by the first key.
        return [
            steps[0][0] if name in self._given and len(steps) > 1 else path
            for name in needed
            for path, steps in [self._paths[name]]
        ]

    def wanted(self) -> list[tuple[str, ...]]:
        """Return the paths of keys that :meth:`read` may follow, for readers of columns."""
        paths: list[tuple[str, ...]] = []
        for path, steps in self._paths.values():
            keys = tuple(key for key, _, _ in steps)
            # A key may contain dots; a number may select an item of a list.
            paths += [(path,), keys, tuple(k for k in keys if not (k.isascii() and k.isdigit()))]
            for place, (_, name, _) in enumerate(steps):
                if name is not None:
                    paths.append((*keys[: place + 1], name))
        return list(dict.fromkeys(path for path in paths if path))

    def read(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the fields of one record that are not empty, without outer white space.

        Raises:
            RowError: A field holds neither text nor a number, or the id cannot serve as a key.
        """
        if not self._keys:
            self._keys = list(islice(dict.fromkeys(_leaf_names(record)), _MAX_KEYS))
        found: dict[str, str] = {}
        for name, (path, steps) in self._paths.items():
            # A key may contain dots.
            values = [record[path]] if path in record else list(_walk(record, steps))
            if values:
                self._never_seen.discard(name)
            text = self._id(values) if name == "id" else _text(name, values)
            if text:
                found[name] = text
        return found

    def _id(self, values: list[Any]) -> str:
        if not self._strict:
            return _text("id", values)
        text = _text("id", list(map(exact_number, values)))
        return check_key(whole_number(text) if self._untyped else text, "id")

    def seen(self) -> dict[str, list[str]]:
        """Return the input of :meth:`note`: the fields that occurred, and a first row's keys."""
        return {"seen": sorted(set(self._paths) - self._never_seen), "keys": self._keys}

    def note(self, seen: Sequence[str], keys: Sequence[str]) -> None:
        """Record what another reader has seen in the same input."""
        self._never_seen.difference_update(seen)
        self._keys = self._keys or list(keys)

    def note_leaves(self, leaves: Sequence[str]) -> None:
        """Record as seen the fields that have a column in a table with these paths."""
        for name, (path, steps) in self._paths.items():
            keys = [key for key, _, _ in steps if not (key.isascii() and key.isdigit())]
            starts = {path, ".".join(keys)}
            if any(
                leaf == start or leaf.startswith(f"{start}.") for leaf in leaves for start in starts
            ):
                self._never_seen.discard(name)
        self._keys = list(leaves)

    def check_all_seen(self, source: str, required: Sequence[str] = ()) -> None:
        """Check at an input's end that every named or required field occurred.

        Args:
            source: The input's name.
            required: Fields that must occur even if they are not named.

        Raises:
            DataError: A field did not occur; its name is probably misspelt.
        """
        for name in sorted(self._never_seen.intersection([*self._given, *required])):
            named = name in self._given
            option = f" (--{name}-field)" if named else ""
            raise DataError(
                f"{source}: no row has the field {self._paths[name][0]!r}{option}; the first row"
                f" has {shown_names(self._keys or ['no fields'])}"
                + ("" if named else f"; {FIELD_OPTIONS}")
            )

    @property
    def other_names(self) -> list[str]:
        """Return the fields of the first row that no option names."""
        sought = {keys[0] for keys in self.wanted()} | {path for path, _ in self._paths.values()}
        return [
            key for key in self._keys if key not in sought and key.partition(".")[0] not in sought
        ]


def check_key(text: str, what: str) -> str:
    """Return a key of articles if logs, indexes and messages can hold it.

    Raises:
        RowError: The key is too long, or holds a control character or a byte order mark.
    """
    if len(text) > _MAX_ID_CHARS:
        raise RowError(f"{what} too long")
    odd = _CONTROL.search(text)
    if odd is not None:
        raise RowError("NUL byte" if odd[0] == "\0" else f"control character in {what}")
    return text


def exact_number(value: Any) -> Any:
    """Return an id unchanged, unless it is a number that its type has rounded.

    Raises:
        RowError: The number is rounded, so two ids may have become one; the reason names the type.
    """
    if isinstance(value, list):
        return [exact_number(item) for item in value]
    if isinstance(value, RoundedFloat):
        raise rounded(value.kind, value.bits)
    if isinstance(value, float) and abs(value) >= 2**_DOUBLE_BITS:
        raise rounded()
    return value


def rounded(kind: str = "double", bits: int = _DOUBLE_BITS) -> RowError:
    """Return the error for an id that a floating-point type has rounded."""
    return RowError(f"id beyond 2**{bits} of type {kind}")


def whole_number(text: str) -> str:
    """Convert a whole number that is written as a floating-point number (``17.0``).

    Raises:
        RowError: The number is so large that its last digits are lost.
    """
    if text[-1:].isdigit() and ("." in text or "+" in text):
        if _WHOLE.fullmatch(text):
            number = int(text.partition(".")[0])
            if abs(number) >= 2**_DOUBLE_BITS:
                raise rounded()
            return str(number)
        if _EXPONENT.fullmatch(text):
            raise rounded()
    return text


def parse_path(name: str, path: str) -> list[_Step]:
    """Parse a path into steps (key, key of the filter or None, the filter's pattern).

    Raises:
        UsageError: The path is invalid.
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
    """Yield every value at the end of the steps, iterating over lists."""
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


def _leaf_names(value: Any, path: str = "") -> Iterator[str]:
    """Yield the paths to the texts of a record, down to a readable depth."""
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, Mapping)), None)
    if isinstance(value, Mapping) and path.count(".") < _MAX_SHOWN_DEPTH:
        for key, inner in value.items():
            name = str(key).encode("utf-8", "backslashreplace").decode("utf-8")
            yield from _leaf_names(inner, f"{path}.{name}" if path else name)
    elif path:
        yield path


def _text(name: str, values: list[Any]) -> str:
    parts = [part for value in values for part in _leaves(name, value)]
    if name in _JOINED_BY:
        text = _JOINED_BY[name].join(parts)
        return " ".join(text.split()) if name == "title" else text.strip()
    return parts[0] if parts else ""


def _leaves(name: str, value: Any) -> Iterator[str]:
    # NaN, the only value that differs from itself, is what pandas writes for a missing text.
    if value is None or (isinstance(value, float) and value != value):
        return
    if isinstance(value, bytes):
        value = _decoded(value)
    if isinstance(value, str):
        stripped = value.strip()
        if stripped:
            yield stripped
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        yield _number(name, value)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(name, item)
    elif hasattr(value, "isoformat"):
        # Dates and times of Parquet.
        yield value.isoformat()
    else:
        raise RowError(f"{name} is not text")


def _number(name: str, value: int | float | Decimal) -> str:
    """Format a number as text; omit the ".0" that pandas adds to whole numbers."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise RowError(f"{name} is not text")
    if isinstance(value, Decimal):
        return str(int(value)) if value == int(value) else format(value, "f")
    whole = value.is_integer() and abs(value) < 2**_DOUBLE_BITS
    return str(int(value)) if whole else str(float(value))


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("bad UTF-8") from error
