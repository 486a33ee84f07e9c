"""Named sets of settings that are laid over a recipe, below the command line.

``released`` turns every switch of ``README.md``'s "Paper and released code" to what the public
Tiny-NewsRec code does where it differs from the paper; recipes by themselves follow the paper.
"""

from typing import Any

from trainer.errors import ConfigError

_RELEASED_ALL: dict[str, Any] = {
    "model.pooling_mask": False,
    "model.history_padding": "learned",
    "data.pad_to_max": True,
}
_RELEASED_CLICKS: dict[str, Any] = {
    "data.static_negatives": True,
    "optimizer.amsgrad": True,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "released": {
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
}


def preset(name: str, task: str) -> dict[str, Any]:
    """Dotted settings of a preset for one task.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there is {', '.join(sorted(PRESETS))}")
    return dict(PRESETS[name][task])
