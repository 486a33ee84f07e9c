"""Decide which of several settings in a pipeline file wins, and note the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launchers.config import PipelineConfig, StudentSection
from launchers.steps import FINETUNE, PLAIN
from trainer.config.flat import flatten, to_dict
from trainer.config.parts import settings_of_parts
from trainer.config.yaml_files import plain
from trainer.errors import ConfigError
from trainer.recipes.load import read_recipe, setting_words, task_of_recipe
from trainer.tasks.registry import all_settings

Level = tuple[str, dict[str, Any]]
"""A place in the file, and its settings with dotted keys."""


def levels(
    config: PipelineConfig, stage: str, recipe: str, student: StudentSection | None
) -> list[Level]:
    """List the places that give settings of a stage's run; later places win.

    A setting of all runs or of a student applies only to runs whose task reads the setting.
    """
    stages = [FINETUNE, PLAIN] if stage == PLAIN else [stage]
    read = settings_of(recipe)

    def of_many(given: Mapping[str, Any]) -> dict[str, Any]:
        # A setting that no task reads stays in the list, so that the command refuses the setting.
        known = all_settings()
        return {k: v for k, v in flatten(given).items() if k in read or k not in known}

    found = [("set", of_many(config.set))]
    found += [(f"stages.{name}.set", getattr(config.stages, name).set) for name in stages]
    if student is not None:
        found.append((f"set of student {student.name}", of_many(student.set)))
    return [(place, flatten(given)) for place, given in found]


def settings_of(recipe: str) -> dict[str, Any]:
    """Return the settings that a recipe's task may read, with their defaults.

    The default is None where a non-default part of the model brings the setting. A wrong recipe
    has no settings here; the check of its command reports the error.
    """
    try:
        config = task_of_recipe(recipe).config
    except ConfigError:
        return {}
    return dict.fromkeys(settings_of_parts(config)) | flatten(to_dict(config()))


def lengths(recipe: str, stored: Mapping[str, int], *, clicks: bool) -> dict[str, Any]:
    """Return the recipe's text lengths, limited to the stored tokens, where the file sets none.

    All click tasks therefore read equally long titles, no matter which export they start from.

    Args:
        recipe: Recipe of a stage.
        stored: Number of stored tokens, by field.
        clicks: Whether the recipe's task is a click task.
    """
    given = settings_of(recipe)
    if given:
        given |= read_recipe(recipe)
    found = {}
    for field, limit in stored.items():
        key = f"data.max_{field}_tokens"
        if key not in given:
            continue
        wanted = int(given[key])
        if wanted > limit or (clicks and field == "title"):
            found[key] = min(wanted, limit)
    return found


def check_lengths(step: str, settings: Mapping[str, Any], stored: Mapping[str, int]) -> None:
    """Refuse text lengths above the number of stored tokens.

    Raises:
        ConfigError: A length is too large; the message names both settings.
    """
    for field, limit in stored.items():
        wanted = plain(settings.get(f"data.max_{field}_tokens"))
        if isinstance(wanted, int) and wanted > limit:
            raise ConfigError(
                f"step {step}: data.max_{field}_tokens is {wanted}, but tokenizer.{field}_tokens "
                f"stores {limit}: raise the latter or lower the former"
            )


def beaten(found: Sequence[Level], own: Mapping[str, Any]) -> tuple[str, ...]:
    """Describe settings of all runs that a stage, a student or the pipeline itself overrides.

    Args:
        found: The result of :func:`levels`.
        own: Settings that the pipeline always makes itself.
    """
    notes = []
    for number, (place, given) in enumerate(found):
        for key, value in given.items():
            words = setting_words(key, value)
            if key in own:
                if setting_words(key, own[key]) != words:
                    notes.append(f"{key} in '{place}' has no effect: the pipeline sets it itself")
            elif number == 0:
                for nearer, other in found[1:]:
                    if key in other and setting_words(key, other[key]) != words:
                        now = " ".join(setting_words(key, other[key]))
                        notes.append(
                            f"{key} is {' '.join(words)} in '{place}' but {now} in '{nearer}', "
                            "which wins there"
                        )
    return tuple(notes)
