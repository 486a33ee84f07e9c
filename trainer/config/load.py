"""From a recipe and the command line to one :class:`TrainConfig`, and back to plain data.

A recipe is YAML with the sections of :mod:`trainer.config.schema`. It may name another recipe as
its ``base`` and then holds only what differs. Recipe, preset and command line are laid over each
other as dotted settings and parsed once by tyro, so that a mistake is found in the same way
wherever it is made.
"""

import contextlib
import dataclasses
import difflib
import io
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.config.bias import settle_bias
from trainer.config.init import with_defaults_of_init
from trainer.config.presets import preset as preset_settings
from trainer.config.schema import TrainConfig
from trainer.config.validate import validate
from trainer.errors import ConfigError

_LITERALS = {"true": "True", "false": "False", "null": "None"}
RECIPES = Path(__file__).parent.parent / "recipes"


def load_config(
    recipe: str, overrides: Sequence[str] = (), *, preset: str | None = None
) -> TrainConfig:
    """Resolve a recipe, a preset and overrides into a validated configuration.

    Args:
        recipe: Name of a recipe that comes with the project, or a path to one.
        overrides: Command-line words such as ``--run.seed 3 --model.backbone.layers 0 1``.
        preset: Name of a preset laid between the two.

    Raises:
        ConfigError: Unknown recipe, key or value, or settings that contradict each other.
    """
    by_hand: set[str] = set()
    settings = read_recipe(recipe, by_hand=by_hand)
    given = parse_overrides(overrides)
    if preset is not None:
        task = [*given.get("task", ()), settings.get("task")][0]
        chosen = preset_settings(preset, str(task))
        settings |= chosen
        by_hand |= set(chosen)
    settings = with_defaults_of_init(settings | given, by_hand | set(given))
    config = from_settings(settings, where=f"recipe {recipe}")
    validate(config, given)
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(
        p.relative_to(RECIPES).with_suffix("").as_posix() for p in RECIPES.rglob("*.yaml")
    )


def read_recipe(
    recipe: str, _seen: tuple[str, ...] = (), *, by_hand: set[str] | None = None
) -> dict[str, Any]:
    """Read a recipe and its bases into dotted settings; a base's path starts from the recipe's
    folder.

    Args:
        recipe: Name of a recipe that comes with the project, or a path to one.
        by_hand: Gets the keys that recipes of the user's own set.

    Raises:
        ConfigError: The recipe is missing, is not YAML with sections, or has an unknown key.
    """
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(recipe_names())}"
        raise ConfigError(f"no recipe {recipe!r} ({path} is not a file){hint}")
    here = str(path.resolve())
    if here in _seen:
        raise ConfigError(f"recipe {recipe}: its bases name each other: {' -> '.join(_seen)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe {path}: expected sections, found {type(content).__name__}")
    base = str(content.pop("base", None) or "")
    if base.endswith((".yaml", ".yml")):
        base = str(path.parent / base)
    settings = read_recipe(base, (*_seen, here), by_hand=by_hand) if base else {}
    own = flatten(content)
    if by_hand is not None and RECIPES.resolve() not in Path(here).parents:
        by_hand |= set(own)
    _check_keys(own, where=f"recipe {path}")
    return settings | own


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Turn ``--section.key value ...`` and ``--section.key=value`` into dotted settings.

    Raises:
        ConfigError: A word stands where an option should, or an option is unknown.
    """
    settings: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            key = key.replace("-", "_")
            settings[key] = [value] if has_value else []
        elif key is None:
            raise ConfigError(f"unexpected word {word!r}: overrides look like --run.seed 3")
        else:
            settings[key].append(word)
    _check_keys(settings, where="command line")
    return dict(settings)


def from_settings(settings: Mapping[str, Any], *, where: str) -> TrainConfig:
    """Parse dotted settings with the schema.

    Raises:
        ConfigError: A value has the wrong type or the task is missing.
    """
    import tyro

    if "task" not in settings:
        raise ConfigError(f"{where}: no task; set it to one of {', '.join(_choices_of_task())}")
    words = [w for key, value in settings.items() for w in (f"--{key}", *_as_words(value))]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            config = tyro.cli(TrainConfig, args=words, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        raise ConfigError(f"{where}: {_reason(said.getvalue())}") from error
    return dataclasses.replace(config, model=settle_bias(config.model))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested plain data (for JSON)."""
    return dataclasses.asdict(config)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def known_keys(cls: type = TrainConfig, prefix: str = "") -> list[str]:
    """Dotted names of all settings of the schema."""
    hints = typing.get_type_hints(cls)
    keys: list[str] = []
    for item in dataclasses.fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            keys += known_keys(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            keys.append(prefix + item.name)
    return keys


def _check_keys(keys: Iterable[str], *, where: str) -> None:
    known = known_keys()
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}: unknown setting {key!r}{hint}")


def _choices_of_task() -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(TrainConfig)["task"])


def _as_words(value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [_LITERALS.get(str(item).lower(), str(item)) for item in values]


def _reason(said: str) -> str:
    """The one line of tyro's message that says what is wrong."""
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in said.splitlines()]
    lines = [line for line in lines if line.strip("-─ ") and not line.endswith("error")]
    ends = ("Argument helptext", "For full")
    stop = next((i for i, line in enumerate(lines) if line.startswith(ends)), None)
    return " ".join(lines[1:stop] or lines[:stop]) or "wrong value"
