"""Configurations as plain data: nested as in YAML, or flat with dotted keys."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Convert the configuration to nested plain data (for JSON)."""
    return dataclasses.asdict(config)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one mapping with dotted keys.

    Raises:
        ConfigError: A setting is given twice, as ``a.b`` and as ``b`` in ``a``.
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        found = flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        for each in found:
            if each in flat:
                raise ConfigError(f"{each} is set twice: with a dotted key and in its section")
        flat |= found
    return flat


def setting_types(config: type[TrainConfig]) -> dict[str, Any]:
    """Map every setting of a task, by dotted name, to its type."""

    def collect(cls: type, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        hints = typing.get_type_hints(cls)
        for name in (field.name for field in dataclasses.fields(cls)):
            hint = hints[name]
            if dataclasses.is_dataclass(hint):
                found |= collect(typing.cast(type, hint), f"{prefix}{name}.")
            else:
                found[prefix + name] = hint
        return found

    return collect(config, "")
