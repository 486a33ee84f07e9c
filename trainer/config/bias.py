"""UniLMv2's relative position bias, when the backbone's weights decide whether it is used."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open

from shards.pretrained_folder import check_header
from trainer.config.schema import BackboneConfig, LanguageModelConfig
from trainer.errors import ConfigError, DataError

M = TypeVar("M", bound=LanguageModelConfig)

BIAS_KEY = "rel_pos_bias.weight"
"""The key of the bias table in a backbone's weights, as ``tnr convert unilmv2`` writes it."""


def settle_bias(model: M) -> M:
    """Replace a ``backbone.relative_position_bias`` of None by true or false.

    The value becomes true if the weights in the folder ``backbone.name`` hold the bias table. A
    model that starts from an export (``init``) uses what the export has, so the value becomes
    false.

    Raises:
        ConfigError: The setting is false although the weights hold the table, or the weights are
            unreadable.
    """
    asked = model.backbone.relative_position_bias
    is_held = model.init is None and _holds_table(model.backbone)
    if asked is False and is_held:
        raise ConfigError(
            f"model.backbone.relative_position_bias is false, but {model.backbone.name} was made "
            f"with that bias (its weights hold {BIAS_KEY}): leave it out"
        )
    settled = is_held if asked is None else asked
    backbone = dataclasses.replace(model.backbone, relative_position_bias=settled)
    return dataclasses.replace(model, backbone=backbone)


def _holds_table(backbone: BackboneConfig) -> bool:
    weights = Path(backbone.name) / "model.safetensors"
    if backbone.name == "random" or not weights.is_file():
        return False
    try:
        check_header(weights)
        with safe_open(weights, framework="np") as tensors:
            return BIAS_KEY in tensors.keys()  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, DataError) as error:
        raise ConfigError(f"{weights} cannot be read: {error}") from error
