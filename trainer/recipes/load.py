"""Resolution of a recipe and the command line to the configuration of one run.

A recipe is YAML with the sections of its task's configuration. It may name another recipe as its
``base`` and then holds only the differences. Recipe, preset and command line are laid over each
other as dotted settings and checked once against the schema, so that a mistake is reported in the
same way everywhere; the message says where the setting was given last.
"""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from trainer.config.bias import settle_bias
from trainer.config.flat import flatten, setting_types
from trainer.config.parts import settings_of_parts, with_parts
from trainer.config.schema import TrainConfig
from trainer.config.text import refuse_control, shown
from trainer.config.validate import validate
from trainer.config.yaml_files import Scalar, read_yaml, truth
from trainer.errors import ConfigError
from trainer.recipes.init import settings_of_export
from trainer.recipes.presets import preset as preset_settings
from trainer.tasks.registry import TASKS, all_settings, settings_read, task_named
from trainer.tasks.task import Task

RECIPES = Path(__file__).parent
MAX_BASES = 16
"""Largest number of recipes in a chain of bases."""
_UNSET = ("run.dir", "data.articles")
"""Settings that are "" if not set; :mod:`trainer.config.validate` requires both."""
_MOST_NAMED = 8
_NUMBERS = {int: "a whole number", float: "a number"}

Layer = tuple[str, dict[str, Any]]
"""Source of settings in words, and the dotted settings."""


def load_config(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    source: str = "command line",
) -> TrainConfig:
    """Resolve a recipe, a preset and overrides to a validated configuration.

    Args:
        recipe: Name of a recipe that comes with the project, or a path to one.
        overrides: Command-line words such as ``--run.seed 3 --model.backbone.layers 0 1``.
        preset: Name of a preset between the recipe and the overrides.
        source: Source of the overrides, for messages.

    Raises:
        ConfigError: A recipe, key or value is unknown, or settings contradict each other; names the
            recipe, the preset or the command line that gave the setting last.
    """
    layers, given = _read_layers(recipe), parse_overrides(overrides, source)
    shipped = sum(where in _shipped() for where, _ in layers)
    layers.append((source, given))
    task = _task(layers)
    if preset is not None:
        layers.insert(-1, (f"preset {preset}", preset_settings(preset, task.name)))
    init = _typed(str, _merge(layers).get("model.init"))
    if isinstance(init, str):
        decided = settings_of_export(init, reads_clicks=task.config.reads_clicks)
        layers.insert(shipped, (f"model.init {init}", decided))
        read = setting_types(_with_parts(layers, task))
        layers[shipped] = (layers[shipped][0], {k: v for k, v in decided.items() if k in read})
    config = _parse(layers, task)
    try:
        validate(config, given)
    except ConfigError as error:
        raise ConfigError(_with_source(str(error), layers)) from error
    return config


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(
        p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml")
    )


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read a recipe and its bases to dotted, typed settings.

    Values of a wrong type stay unchanged. A base's path starts from the recipe's folder.

    Raises:
        ConfigError: The recipe is missing, is not YAML with sections, or has an unknown key.
    """
    found, hints = _merge(_read_layers(recipe)), all_settings()
    return {key: _typed(hints[key], value) for key, value in found.items()}


def task_of_recipe(recipe: str, overrides: Sequence[str] = ()) -> Task[Any]:
    """Return the task of a recipe, or the task that overrides name.

    Raises:
        ConfigError: The recipe or an override is wrong, or neither names a task.
    """
    return _task(_all_layers(recipe, overrides))


def configuration_of(recipe: str, overrides: Sequence[str] = ()) -> type[TrainConfig]:
    """Return the configuration class of a recipe's task, with the settings of its parts.

    Raises:
        ConfigError: The recipe or an override is wrong, or neither names a task.
    """
    layers = _all_layers(recipe, overrides)
    return _with_parts(layers, _task(layers))


def _all_layers(recipe: str, overrides: Sequence[str]) -> list[Layer]:
    return [*_read_layers(recipe), ("command line", parse_overrides(overrides))]


def is_yaml(name: str) -> bool:
    """Return whether a name is a YAML file's, not a recipe's of the project."""
    return name.lower().endswith((".yaml", ".yml"))


def _read_layers(recipe: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Read the settings of a recipe and its bases, lowest first."""
    refuse_control(recipe, "recipe")
    path = Path(recipe) if is_yaml(recipe) else RECIPES / f"{recipe}.yaml"
    if not os.path.exists(path):  # noqa: PTH110  # False also if the name is too long
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(recipe_names())}"
        raise ConfigError(f"no recipe {recipe!r} ({path} is not a file){hint}")
    here = str(path.resolve())
    if here in seen:
        raise ConfigError(f"recipe {recipe}: its bases form a circle: {' -> '.join(seen)}")
    if len(seen) == MAX_BASES:
        raise ConfigError(f"recipe {seen[0]} has more than {MAX_BASES} bases, the limit")
    content = read_yaml(path)
    base = str(content.pop("base", None) or "")
    if is_yaml(base):
        base = str(path.parent / base)
    where = f"recipe {recipe}"
    try:
        own = flatten(content)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    known = known_keys()
    # a section with only comments
    empty = {key for key, value in own.items() if value is None and key not in known}
    own = {k: v for k, v in own.items() if k not in empty or not _is_section(k, known)}
    _check_keys(own, where=where)
    return [*(_read_layers(base, (*seen, here)) if base else ()), (where, own)]


def parse_overrides(words: Sequence[str], source: str = "command line") -> dict[str, Any]:
    """Turn ``--section.key value ...`` and ``--section.key=value`` into dotted settings.

    Raises:
        ConfigError: A word stands in place of an option or contains a control character, an option
            is unknown, or an option for a list is given twice (for other settings, the last value
            counts).
    """
    settings: dict[str, list[str]] = {}
    key = None
    for word in words:
        refuse_control(word, f"{source}: a word")
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if key in settings and typing.get_origin(_bare(all_settings().get(key))) is tuple:
                raise ConfigError(f"{source}: {key} is given twice; give all its values after one")
            settings[key] = [value] if has_value else []
        elif key is None:
            raise ConfigError(
                f"{source}: unexpected word {shown(word)}: overrides look like --run.seed 3"
            )
        else:
            settings[key].append(word)
    _check_keys(settings, where=source)
    return dict(settings)


def from_settings(settings: Mapping[str, Any], *, where: str) -> TrainConfig:
    """Parse dotted settings with the schema.

    Raises:
        ConfigError: A key is unknown, a value has a wrong type, or the task is missing.
    """
    _check_keys(settings, where=where)
    layers = [(where, dict(settings))]
    return _parse(layers, _task(layers))


def _task(layers: Sequence[Layer]) -> Task[Any]:
    """Return the task of the settings."""
    name = _typed(str, _merge(layers).get("task"))
    if name is None:
        raise ConfigError(f"{layers[0][0]}: no task; set it to one of {', '.join(TASKS)}")
    try:
        return task_named(str(name))
    except ConfigError as error:
        raise ConfigError(f"{_source('task', layers)}: {error}") from error


def _with_parts(layers: Sequence[Layer], task: Task[Any]) -> type[TrainConfig]:
    """Return the task's configuration class with the settings of the model's parts."""
    settings = {key: _typed(str, value) for key, value in _merge(layers).items()}
    try:
        cls: type[TrainConfig] = with_parts(task.config, settings)
    except ConfigError as error:
        raise ConfigError(_with_source(str(error), layers)) from error
    return cls


def _parse(layers: Sequence[Layer], task: Task[Any]) -> TrainConfig:
    cls = _with_parts(layers, task)
    settings, hints = _merge(layers), setting_types(cls)
    _check_apply(layers, hints, task)
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = _typed(hints[key], value)
        for text in value if isinstance(value, list | tuple) else [value]:
            refuse_control(str(text), key)
            if text == "" and key not in _UNSET and _is_text(hints[key]):
                where = _source(key, layers)  # as a path, "" would be the working directory
                raise ConfigError(f"{where}: {key} is empty; give it a value, or leave it out")
    try:
        config = msgspec.convert(nested, cls, strict=False)
    except msgspec.ValidationError as error:
        found = re.search(r"`\$\.([a-z_.]+)", str(error))
        if found is None:
            raise ConfigError(f"{layers[0][0]}: {error}") from error
        key = found[1]
        said = _said(settings[key])
        raise ConfigError(
            f"{_source(key, layers)}: {key} is {said}; expected {_describe(hints[key])}"
        ) from error
    return dataclasses.replace(config, model=settle_bias(config.model))


def known_keys() -> list[str]:
    """Return the dotted names of all settings of all tasks."""
    return list(all_settings())


def setting_words(key: str, value: Any) -> list[str]:
    """Return the command-line words that reproduce a setting's value.

    Args:
        key: Dotted name of the setting; a key outside the schema is formatted by its value alone.
        value: Value from YAML or from Python; a list becomes several words.
    """
    is_text = _element(all_settings().get(key, object)) is str
    words = []
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, Scalar) and not is_text:
            item = item.value
        word = "null" if item is None else str(item)
        words.append(word.lower() if isinstance(item, bool) else word)
    return words


def _is_optional(hint: Any) -> bool:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return is_union and type(None) in typing.get_args(hint)


def _bare(hint: Any) -> Any:
    """Return the type without ``| None``."""
    return typing.get_args(hint)[0] if _is_optional(hint) else hint


def _element(hint: Any) -> Any:
    """Return the type of one word; ``str`` for a choice of words."""
    hint = _bare(hint)
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return str if typing.get_origin(hint) is typing.Literal else hint


def _is_text(hint: Any) -> bool:
    bare = _bare(hint)
    bare = typing.get_args(bare)[0] if typing.get_origin(bare) is tuple else bare
    return bare is str


def _typed(hint: Any, value: Any) -> Any:
    """Convert a value to the schema's type if possible, else return it unchanged for refusal."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if _is_optional(hint) and len(items) == 1 and str(items[0]).lower() in ("null", "none"):
        return None
    typed = [_typed_item(_element(hint), item) for item in items]
    if typing.get_origin(_bare(hint)) is tuple:
        return None if value is None else typed
    return typed[0] if len(typed) == 1 else typed


def _typed_item(kind: Any, item: Any) -> Any:
    if item is None or isinstance(item, list | dict):
        return item
    if kind is str:
        return str(item)
    text = item.value if isinstance(item, Scalar) else item
    if kind is bool and isinstance(text, str):
        said = truth(text)
        return text if said is None else said
    if kind in _NUMBERS and isinstance(text, str):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def _describe(hint: Any) -> str:
    """Describe what a setting accepts."""
    bare = _bare(hint)
    if typing.get_origin(bare) is tuple:
        inside = typing.get_args(bare)
        many = "any number of values" if inside[-1] is ... else f"{len(inside)} values"
        return f"{many}, each {_describe(inside[0])}"
    if typing.get_origin(bare) is typing.Literal:
        said = f"one of {', '.join(map(repr, typing.get_args(bare)))}"
    else:
        said = {bool: "true or false", str: "one text", **_NUMBERS}[bare]
    return f"{said}, or null" if _is_optional(hint) else said


def _said(value: Any) -> str:
    """Format a setting's value as it was written; single words get quotes."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | tuple):
        return shown([str(item) for item in value]) if value else "without a value"
    return "null" if value is None else shown(str(value))


def _merge(layers: Sequence[Layer]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for _, found in layers:
        settings |= found
    return settings


def _shipped() -> set[str]:
    """Return the sources of shipped recipes, which are the lowest layers of any run."""
    return {f"recipe {name}" for name in recipe_names()}


def _source(key: str, layers: Sequence[Layer]) -> str:
    return next(where for where, found in reversed(layers) if key in found)


def _with_source(message: str, layers: Sequence[Layer]) -> str:
    """Prefix a message with the last layer that gave a setting it names."""
    named = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message))
    for where, found in reversed(layers):
        if named & found.keys():
            return f"{where}: {message}"
    return message


def _is_section(key: str, known: Iterable[str]) -> bool:
    return any(name.startswith(f"{key}.") for name in known)


def _check_apply(layers: Sequence[Layer], hints: Mapping[str, Any], task: Task[Any]) -> None:
    """Refuse settings that neither the task nor its model's parts read."""
    settings, of_parts = _merge(layers), settings_of_parts(task.config)
    for where, found in layers:
        for key in found:
            if key in hints:
                continue
            reader = f"task {task.name}"
            others = [n for n in TASKS if key in settings_read(task_named(n).config)]
            if key in of_parts:
                choice, others = of_parts[key]
                default = attrgetter(choice)(task.config())
                reader = f"{choice} {_typed(str, settings.get(choice, default))}"
            raise ConfigError(
                f"{where}: {reader} does not read {key}, a setting of {' and '.join(others)}: "
                "leave it out"
            )


def _check_keys(keys: Iterable[str], *, where: str) -> None:
    known = known_keys()
    for key in keys:
        if key not in known:
            if _is_section(key, known):
                inside = [name for name in known if name.startswith(f"{key}.")]
                more = ", …; tnr train RECIPE --help lists them all" * (len(inside) > _MOST_NAMED)
                raise ConfigError(
                    f"{where}: {shown(key)} is a section, not a setting; its settings are "
                    f"{', '.join(inside[:_MOST_NAMED])}{more}"
                )
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; tnr train RECIPE --help lists them"
            raise ConfigError(f"{where}: unknown setting {shown(key)}{hint}")
