"""Presets: named sets of settings between a recipe and the command line.

``released`` turns every switch of the table in ``trainer/README.md`` to the behaviour of the
public Tiny-NewsRec code where it differs from the paper; recipes follow the paper by default.

``cpu`` and ``cpu_bf16`` are the advised settings for training on a CPU, without and with hardware
for bf16 (``amx_bf16`` or ``avx512_bf16`` in ``/proc/cpuinfo``). Dropout of attention weights keeps
attention out of its fused kernel, so it is off; dropout of hidden states stays. This regularises
slightly less than the paper's setting.
"""

from typing import Any

from trainer.errors import ConfigError

_RELEASED_ALL: dict[str, Any] = {
    "model.pooling_mask": False,
    "data.pad_to_max": True,
}
_RELEASED_CLICKS: dict[str, Any] = {
    "model.history_padding": "learned",
    "data.static_negatives": True,
    "optimizer.amsgrad": True,
}

_CPU: dict[str, Any] = {"model.backbone.attention_dropout": 0.0}

RELEASED: dict[str, dict[str, Any]] = {
    "post_train": {**_RELEASED_ALL, "run.copies.rule": "last_m"},
    "post_train_distill": {**_RELEASED_ALL, "loss.temperature_squared": False},
    "finetune": {**_RELEASED_ALL, **_RELEASED_CLICKS},
    "finetune_distill": {
        **_RELEASED_ALL,
        **_RELEASED_CLICKS,
        "loss.temperature_squared": False,
        "loss.target": 0.2,
        "loss.shared_projection": True,
        "loss.padded_slots": True,
    },
}
"""``released`` by task; the other tasks are not part of that code."""

COMMON: dict[str, dict[str, Any]] = {
    "cpu": _CPU,
    "cpu_bf16": {**_CPU, "run.precision": "bf16"},
}
"""Presets for every task."""


def preset(name: str, task: str) -> dict[str, Any]:
    """Return the dotted settings of a preset for one task.

    Raises:
        ConfigError: The preset does not exist, or does not apply to the task.
    """
    if name in COMMON:
        return dict(COMMON[name])
    if name != "released":
        known = ", ".join(sorted([*COMMON, "released"]))
        raise ConfigError(f"unknown preset {name!r}; expected one of {known}")
    if task not in RELEASED:
        raise ConfigError(
            f"preset {name} is for {', '.join(RELEASED)}, not for task {task}: leave it out"
        )
    return dict(RELEASED[task])
