"""Settings that choose a part, such as a user encoder, and the settings that come with the part.

``model.user_encoder nrms`` takes the class of that name from a registry. The class is a frozen
dataclass, and its settings stand next to the choice (``model.user_heads``). Settings of parts that
are not chosen are refused.
"""

import dataclasses
import functools
import importlib
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from trainer.config.ranges import check_ranges
from trainer.config.text import shown
from trainer.errors import ConfigError

Registry = Mapping[str, str]
"""Module and class of each part by name; a part is imported when it is first used."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run that a setting chooses by name; its fields are settings.

    Its module imports no torch: commands read the settings first.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    """Settings of the model section, the part's own or others, on which trained weights depend; a
    run that starts from an export must keep them."""


C = TypeVar("C")


def part_class(registry: Registry, name: str) -> type[Any]:
    """Return the class of a part.

    Raises:
        ConfigError: The registry does not have the name, or its line is not a class of this kind.
    """
    if not isinstance(name, str) or name not in registry:
        raise ConfigError(f"{shown(name)} is unknown; known are {', '.join(registry)}")
    module, _, attribute = registry[name].partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the registry's line {name!r}: {registry[name]!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Part) and dataclasses.is_dataclass(cls)):
        raise ConfigError(
            f"the registry's line {name!r}: {registry[name]!r} is not a dataclass that derives "
            "from Part"
        )
    return cls


def make_part(registry: Registry, name: str, settings: Mapping[str, Any]) -> Any:
    """Make a part from its settings; missing settings get their defaults.

    Args:
        registry: Registry of the kind of part.
        name: Name of the part.
        settings: Values by name; settings of other parts may be among them.

    Raises:
        ConfigError: The part does not exist, or one of its settings has a wrong type or size.
    """
    cls = part_class(registry, name)
    own = {f.name: settings[f.name] for f in dataclasses.fields(cls) if f.name in settings}
    try:
        part = msgspec.convert(own, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings of {name}: {error}") from error
    check_ranges(part)
    return part


def part_of(section: Any, choice: str) -> Any:
    """Return the part that a section of a configuration chooses.

    Args:
        section: A section such as the model section.
        choice: The setting that names the part.

    Raises:
        ConfigError: The part does not exist.
    """
    return make_part(section.choices[choice], getattr(section, choice), vars(section))


def with_parts(cls: type[C], settings: Mapping[str, Any]) -> type[C]:
    """Return the configuration class with the settings of the chosen parts.

    Args:
        cls: Configuration class of a run.
        settings: Dotted settings; choices that are not among them have their defaults.

    Raises:
        ConfigError: A choice does not name a part; the message begins with the setting.
    """
    chosen = []
    for key, registry, default in _choices(cls):
        name = str(settings.get(key, default))
        if name not in registry:
            known = ", ".join(map(repr, registry))
            raise ConfigError(f"{key} is {shown(name)}; expected one of {known}")
        chosen.append((key, name, tuple(registry)))
    made: type[C] = _with_parts(typing.cast(Any, cls), tuple(chosen))
    return made


def settings_of_parts(cls: type) -> dict[str, tuple[str, list[str]]]:
    """Map each part's setting to its choice and its parts' names, all by dotted name."""
    found: dict[str, tuple[str, list[str]]] = {}
    for key, registry, _ in _choices(cls):
        section = key.rpartition(".")[0]
        for name in registry:
            for field in dataclasses.fields(part_class(registry, name)):
                found.setdefault(f"{section}.{field.name}", (key, []))[1].append(name)
    return found


def _choices(cls: type) -> list[tuple[str, Registry, str]]:
    """List every choice in a configuration: its dotted name, its registry, its default."""
    found = []
    for place, section in typing.get_type_hints(cls).items():
        for name, parts in getattr(section, "choices", {}).items():
            found.append((f"{place}.{name}", parts, getattr(section, name)))
    return found


@functools.lru_cache(maxsize=64)
def _with_parts(cls: Any, chosen: tuple[tuple[str, str, tuple[str, ...]], ...]) -> Any:
    hints = typing.get_type_hints(cls)
    by_section: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {}
    for key, name, known in chosen:
        section, _, choice = key.partition(".")
        by_section.setdefault(section, []).append((choice, name, known))
    sections = []
    for section, parts in by_section.items():
        made = _section(hints[section], parts)
        sections.append((section, made, dataclasses.field(default_factory=made)))
    return _derived(cls, sections, cls) if sections else cls


def _section(section: Any, chosen: Sequence[tuple[str, str, tuple[str, ...]]]) -> Any:
    """Add the settings of the chosen parts to a section."""
    fields, bases = [], []
    for choice, name, known in chosen:
        fields.append((choice, Literal[known], dataclasses.field(default=name)))
        bases.append(part_class(section.choices[choice], name))
    named = Counter(f.name for base in (*bases, section) for f in dataclasses.fields(base))
    if twice := [name for name, count in named.items() if count > 1]:
        raise TypeError(f"{twice[0]} is a setting of two classes of {bases}, {section}: rename one")
    made = _derived(section, fields, *bases, section)
    made.__abstractmethods__ = frozenset()  # read for its settings only
    return made


def _derived(named: Any, fields: Sequence[tuple[str, Any, Any]], *bases: type) -> Any:
    """Make a dataclass with further fields, under the name and the docstring of another."""
    made: Any = dataclasses.make_dataclass(
        named.__name__, fields, bases=bases, frozen=True, kw_only=True
    )
    made.__doc__ = named.__doc__
    return made
