"""Reader of the YAML files that people write: recipes, pipelines, cluster files.

Plain scalars that YAML 1.1 reads as a truth value or a number keep their text (:class:`Scalar`), so
a setting of type text gets ``off``, ``1.10`` or ``0123`` unchanged. Times, dates and numbers with a
leading zero are text. Limits: 1 MiB, 32 levels, 50,000 values after aliases are expanded; regular
files only.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from shards.files import did_you_mean, read_bytes
from shards.location import refuse_keys
from trainer.config.text import refuse_control, shown
from trainer.errors import ConfigError, DataError, UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 50_000

_TAG = "tag:yaml.org,2002:"
_TRUTH = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
_IMPLICIT = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"(?i:yes|no|on|off|true|false)", list("yYnNtTfFoO")),
    "int": (r"[-+]?(0|[1-9][0-9_]{0,17})", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
"""YAML 1.1's implicit types, without times of day, dates, numbers in other bases and numbers beyond
64 bits."""


class Scalar(str):
    """A plain scalar's text, with the truth value or number that YAML reads in it."""

    value: bool | int | float

    def __new__(cls, text: str, value: bool | int | float) -> "Scalar":
        """Keep the text and the value."""
        found = super().__new__(cls, text)
        found.value = value
        return found


def plain(value: Any) -> Any:
    """Replace every :class:`Scalar` in YAML content by its value."""
    if isinstance(value, Scalar):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def truth(text: str) -> bool | None:
    """Return the truth value of a word such as ``on``; None for other words."""
    return _TRUTH.get(text.lower())


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file gives an empty mapping.

    Raises:
        ConfigError: The file is missing or not regular, is not YAML, exceeds a limit, sets a key
            twice, contains a control character or a URL with a key, or does not hold a mapping.
    """
    source = Path(refuse_control(str(path), "the name of a YAML file"))
    if not os.path.exists(source):  # noqa: PTH110  # False also if the name is too long
        near = did_you_mean(source, files=True)
        raise ConfigError(f"{source} does not exist; expected a YAML file{near}")
    try:
        loader = _Loader(read_bytes(source, limit=MAX_BYTES))
        loader.name = source.name
        content = loader.get_single_data()
    except DataError as error:
        raise ConfigError(f"{error}; expected a YAML file") from error
    except _Refused as error:
        raise ConfigError(f"{source}, line {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\\UFFFFFFFF" overflows
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{source}: expected keys and values, found {type(plain(content)).__name__}"
        )
    try:
        refuse_keys(content)
    except UsageError as error:
        raise ConfigError(f"{source}: {error}") from error
    return content


class _Refused(yaml.YAMLError):  # type: ignore[misc]  # PyYAML has no types
    """Valid YAML that is refused."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader with limits, without other tags and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    yaml_constructors: dict[str | None, Any] = {}  # noqa: RUF012

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._extents: dict[Node, tuple[int, int]] = {}
        """Number of values and levels of each finished node, expanded aliases included."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._extents:
                raise _refused(node, "a value contains itself")
            return node
        self._depth += 1
        self._count += 1
        self._check(self._count, self._depth, self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        inside = [self._extents[child] for child in _children(node)]
        values = 1 + sum(count for count, _ in inside)
        levels = 1 + max((level for _, level in inside), default=0)
        self._check(values, levels, node)
        if node is not None:
            self._extents[node] = (values, levels)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise _refused(key, f"the key {shown(key.value)} comes twice")
                seen.add(key.value)
        return node

    def text(self, node: ScalarNode) -> str:
        """Construct a text of one line; drop the line break that ends a block scalar."""
        text = str(self.construct_scalar(node))
        text = text.rstrip("\n") if node.style in ("|", ">") else text
        try:
            return refuse_control(text, "a value")
        except ConfigError as error:
            raise _refused(node, str(error)) from error

    def scalar(self, node: ScalarNode) -> Scalar:
        """Construct a truth value or a number that keeps its text."""
        text, kind = self.text(node), node.tag.removeprefix(_TAG)
        try:
            if kind == "bool":
                return Scalar(text, _TRUTH[text.lower()])
            digits = text.replace("_", "")
            if kind == "int":
                return Scalar(text, int(digits))
            return Scalar(text, float(re.sub(r"(?i)\.(inf|nan)", r"\1", digits)))
        except (KeyError, ValueError) as error:
            raise _refused(node, f"{shown(text)} is not a valid {kind}") from error

    def _check(self, values: int, levels: int, place: Any) -> None:
        if values > MAX_VALUES:
            raise _refused(place, f"more than {MAX_VALUES:,} values, the limit")
        if levels > MAX_DEPTH:
            raise _refused(place, f"more than {MAX_DEPTH} levels of nesting, the limit")

    def unknown(self, node: Node) -> None:
        """Refuse any other type."""
        raise _refused(node, f"the tag {shown(node.tag)} is not supported")

    def construct_null(self, node: ScalarNode) -> None:
        """Return None, after a check of the text."""
        self.text(node)


def _refused(place: Any, why: str) -> _Refused:
    return _Refused(f"{place.start_mark.line + 1}: {why}")


def _children(node: Node | None) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


for _name, (_pattern, _first) in _IMPLICIT.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)
for _name, _constructor in {
    "null": _Loader.construct_null,
    "bool": _Loader.scalar,
    "int": _Loader.scalar,
    "float": _Loader.scalar,
    "str": _Loader.text,
    "seq": _Loader.construct_yaml_seq,
    "map": _Loader.construct_yaml_map,
}.items():
    _Loader.add_constructor(_TAG + _name, _constructor)
_Loader.add_constructor(None, _Loader.unknown)
