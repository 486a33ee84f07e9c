"""Registry of the tasks by name; a new task is a file and a line here."""

import functools
import importlib
from typing import Any

from trainer.config.flat import setting_types
from trainer.config.parts import settings_of_parts, with_parts
from trainer.config.schema import TrainConfig
from trainer.config.text import shown
from trainer.errors import ConfigError
from trainer.tasks.sources import Sources
from trainer.tasks.task import Task

TASKS = {
    "post_train": "trainer.tasks.post_train.task:PostTrain",
    "post_train_distill": "trainer.tasks.post_train.task:PostTrainDistill",
    "finetune": "trainer.tasks.finetune.task:Finetune",
    "finetune_distill": "trainer.tasks.finetune.task:FinetuneDistill",
    "mlm": "trainer.tasks.mlm.task:Mlm",
}
"""Module and class of each task; a task is imported when it is first used."""


@functools.cache
def task_named(name: str) -> Task[Any]:
    """Return a task.

    Raises:
        ConfigError: The task does not exist.
    """
    if name not in TASKS:
        raise ConfigError(f"task is {shown(name)}; expected one of {', '.join(map(repr, TASKS))}")
    module, _, attribute = TASKS[name].partition(":")
    task: Task[Any] = getattr(importlib.import_module(module), attribute)()
    return task


def task_of(config: TrainConfig) -> Task[Any]:
    """Return the task of a run."""
    return task_named(config.task)


def open_sources(config: TrainConfig) -> Sources:
    """Open the shard sets and columns that a run reads; see :meth:`Task.open`."""
    return task_of(config).open(config)


@functools.cache
def all_settings() -> dict[str, Any]:
    """Map every setting of all tasks, by dotted name, to its type."""
    found: dict[str, Any] = {}
    for name in TASKS:
        found |= settings_read(task_named(name).config)
    return found | {"task": str}


def settings_read(config: type[TrainConfig]) -> dict[str, Any]:
    """Map every setting that a task may read, with any parts, to its type."""
    found = setting_types(with_parts(config, {}))
    for choice, parts in settings_of_parts(config).values():
        for part in parts:
            found |= setting_types(with_parts(config, {choice: part}))
    return found
