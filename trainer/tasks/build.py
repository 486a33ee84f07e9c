"""Building of a task that is ready for training from a configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from shards.tokens import TokenColumn
from trainer.config.schema import TrainConfig
from trainer.engine.validation import Validation
from trainer.errors import ModelError
from trainer.export.folder import Exportable, export_model, load_export
from trainer.tasks.base import TaskData
from trainer.tasks.registry import open_sources, task_of
from trainer.tasks.sources import Sources

Exporter = Callable[[nn.Module, Path, dict[str, Any]], object]


@dataclass(frozen=True)
class BuiltTask:
    """A task that is ready for training."""

    module: nn.Module
    """The module half, with the trained model as ``.model``."""
    data: TaskData
    """The data half."""
    export: Exporter
    """Writes the trained model as an export: ``export(model, folder, info)``."""
    validation: Validation | None = None
    """Validation of the model during training."""


def build(
    config: TrainConfig,
    sources: Sources | None = None,
    tick: Callable[[], object] = lambda: None,
) -> BuiltTask:
    """Build the task of a run, with initial weights from torch's random state.

    Seed torch before the call.

    Args:
        config: The run.
        sources: The run's data, if it is open already.
        tick: Called repeatedly while a column is filled, which may take hours.

    Raises:
        TinyNewsRecError: Data, teachers or the initial model are missing or do not match.
    """
    task, opened = task_of(config), sources or open_sources(config)
    _check_init(config, opened.tokens)
    module, data = task.build(config, opened, tick)
    validation = task.validation(config, opened, data)
    return BuiltTask(module, data, exporter(config, opened.tokens), validation)


def open_data(config: TrainConfig, sources: Sources) -> TaskData:
    """Make the data half for a dry run; see :meth:`Task.data`."""
    return task_of(config).data(config, sources)


def open_validation(config: TrainConfig, sources: Sources, data: TaskData) -> Validation | None:
    """Open the validation of a run; see :meth:`Task.validation`."""
    return task_of(config).validation(config, sources, data)


def exporter(config: TrainConfig, tokens: TokenColumn) -> Exporter:
    """Make a function that exports a model together with its text settings."""
    described = {
        "task": config.task,
        "tokenizer_sha256": tokens.tokenizer_sha256,
        **task_of(config).says(config),
    }

    def export(model: nn.Module, folder: Path, info: dict[str, Any]) -> object:
        return export_model(
            cast("Exportable", model), folder, tokens.tokenizer_dir, described | info
        )

    return export


def _check_init(config: TrainConfig, tokens: TokenColumn) -> None:
    """Refuse weights and token ids of different tokenizers, which would train from noise."""
    if config.model.init is not None:
        init = load_export(config.model.init)
        found, name = init.info["tokenizer_sha256"], config.model.init
    elif config.model.backbone.name != "random":
        from shards.tokenizer import load_tokenizer, tokenizer_sha256

        name = config.model.backbone.name
        found = tokenizer_sha256(load_tokenizer(name))
    else:
        return
    if found != tokens.tokenizer_sha256:
        raise ModelError(
            f"the tokens of {config.data.articles} were made with tokenizer "
            f"{tokens.tokenizer_sha256[:12]}…, but {name} has {found[:12]}…; tokenize with it: "
            f"tnr shards tokenize {config.data.articles} --tokenizer {name}"
        )
