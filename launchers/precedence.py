"""Which setting of a pipeline file wins where several places give it, and what is said of it."""

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
"""A place in the file, and the settings that it gives with dotted keys."""


def levels(
    config: PipelineConfig, stage: str, recipe: str, student: StudentSection | None
) -> list[Level]:
    """List the places that give settings of a stage's run; what comes later wins.

    The settings of all runs, and those of a student, go to the runs whose task reads them.
    """
    stages = [FINETUNE, PLAIN] if stage == PLAIN else [stage]
    read = settings_of(recipe)

    def of_many(given: Mapping[str, Any]) -> dict[str, Any]:
        # A setting that no task reads stays, to be refused by the command.
        known = all_settings()
        return {k: v for k, v in flatten(given).items() if k in read or k not in known}

    found = [("set", of_many(config.set))]
    found += [(f"stages.{name}.set", getattr(config.stages, name).set) for name in stages]
    if student is not None:
        found.append((f"set of student {student.name}", of_many(student.set)))
    return [(place, flatten(given)) for place, given in found]


def settings_of(recipe: str) -> dict[str, Any]:
    """Return the settings that the task of a recipe may read, with their defaults (None where a
    part of the model that is not the default brings the setting); none of a recipe that is wrong,
    which is told when its command is checked."""
    try:
        config = task_of_recipe(recipe).config
    except ConfigError:
        return {}
    return dict.fromkeys(settings_of_parts(config)) | flatten(to_dict(config()))


def lengths(recipe: str, stored: Mapping[str, int], *, clicks: bool) -> dict[str, Any]:
    """Lengths of texts where the file sets none: the recipe's, as far as tokens are stored.

    So all click tasks read as much of a title, whatever export they start from.

    Args:
        recipe: Of a stage.
        stored: Tokens that are stored, by field.
        clicks: Whether it is a click task.
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
    """Refuse lengths that the tokens of a pipeline do not have.

    Raises:
        ConfigError: Naming both settings.
    """
    for field, limit in stored.items():
        wanted = plain(settings.get(f"data.max_{field}_tokens"))
        if isinstance(wanted, int) and wanted > limit:
            raise ConfigError(
                f"step {step}: data.max_{field}_tokens is {wanted}, but tokenizer.{field}_tokens "
                f"stores {limit}: raise the one or lower the other"
            )


def beaten(found: Sequence[Level], own: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on settings of all runs that a stage or a student gives otherwise, and on any that the
    pipeline sets itself.

    Args:
        found: As :func:`levels`.
        own: What the pipeline sets, whatever the file says.
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
