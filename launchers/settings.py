"""Convert YAML mappings to dataclasses; a wrong key or type gives a one-line error."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from trainer.config.text import shown
from trainer.config.yaml_files import Scalar, plain
from trainer.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Any, where: str) -> T:
    """Make a dataclass from a mapping, including nested dataclasses.

    Args:
        cls: A dataclass whose fields are plain types, ``X | None``, tuples, mappings from strings
            to one of these or to ``Any``, and dataclasses.
        values: The parsed YAML.
        where: Dotted path of the section, for messages; "" at the top.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or is empty.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'file'}: expected keys and values, found {_say(values)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(fields)}"
            raise ConfigError(f"{shown(_join(where, str(key)))[1:-1]} is not a setting; {hint}")
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING
        if no_default and field.default_factory is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{_join(where, name)} is missing")
    given = {key: convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    for key, value in given.items():
        if value == "":  # an empty path would mean the working directory
            raise ConfigError(f"{_join(where, key)} is empty; give it a value, or leave it out")
    return cls(**given)


def convert(hint: Any, value: Any, where: str) -> Any:
    """Convert one value to the type of its field.

    Raises:
        ConfigError: The value has another type; the message has the key and both types.
    """
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(inside, value, where)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(convert(inside[0], item, f"{where}[{n}]") for n, item in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return build(hint, {} if value is None else value, where)  # type: ignore[arg-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected keys and values, found {_say(value)}")
        return {
            convert(str, key, f"a key of {where}"): convert(inside[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, Scalar):  # a string keeps its spelling, with or without quotes
        value = str(value) if hint is str or origin is typing.Literal else value.value
    if origin is typing.Literal:
        if value not in inside:
            raise ConfigError(f"{where} is {_say(value)}; expected one of {', '.join(inside)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        quotes = ", in quotes" if hint is str and isinstance(value, int | float) else ""
        raise ConfigError(f"{where} is {_say(value)}; expected {hint.__name__}{quotes}")
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    return convert(rest[0], value, where)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _say(value: Any) -> str:
    value = plain(value)
    return "nothing" if value is None else f"{shown(value)} ({type(value).__name__})"
