"""Interface of a task to the rest of the project.

This module does not import torch, because commands import it first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from trainer.config.parts import part_of
from trainer.config.schema import EncoderConfig, TrainConfig
from trainer.tasks.sources import Sources, open_articles

if TYPE_CHECKING:
    from torch import nn

    from trainer.engine.validation import Validation
    from trainer.tasks.base import TaskData

C = TypeVar("C", bound=TrainConfig)


class Task(ABC, Generic[C]):
    """One training task: settings, data half, module half, and the metadata of its export.

    :data:`trainer.tasks.registry.TASKS` names all tasks; ``trainer/README.md`` shows how to add
    one.
    """

    config: type[C]
    """Configuration class; its ``task`` has the task's name as default."""
    stage: ClassVar[int | None] = None
    """Stage whose teachers this task makes (``tnr teachers cache --stage``); None makes none."""

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.config().task

    def open(self, config: C) -> Sources:
        """Open the shard sets and columns that a run reads.

        Raises:
            DataError: A set is missing or of the wrong kind.
            ColumnError: A column is missing or does not match.
        """
        return open_articles(config)

    @abstractmethod
    def data(self, config: C, sources: Sources) -> TaskData:
        """Make the data half without teachers and stored states, for counts and plans."""

    @abstractmethod
    def build(
        self, config: C, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """Make both halves.

        Initial weights follow torch's random state.

        Args:
            config: The run.
            sources: Data of the run.
            tick: Called repeatedly during long work.

        Returns:
            The module half, with the trained model as ``.model``, and the data half.

        Raises:
            TinyNewsRecError: Data, teachers or the initial model are missing or do not match.
        """

    @abstractmethod
    def says(self, config: C) -> dict[str, Any]:
        """Describe the texts and settings of a run's model for readers of its export."""

    def validation(self, config: C, sources: Sources, data: TaskData) -> Validation | None:
        """Open the validation of a run; None without one.

        Raises:
            TinyNewsRecError: The validation data are missing, or do not match the run.
        """
        return None

    def beside(self, config: C, teacher_dims: Sequence[int]) -> int:
        """Count the trained parameters outside the model, such as projections.

        Args:
            config: The run.
            teacher_dims: Width of each teacher's vectors.
        """
        return 0

    def drawn(self, config: C, articles: int, units: int) -> tuple[str, int] | None:
        """Count the stored values of each teacher for the negatives of a run.

        Args:
            config: The run.
            articles: Number of articles in the run's set.
            units: Units of an epoch.

        Returns:
            A description, and the number of values per teacher; None if nothing is stored.
        """
        return None


def encoder_says(config: EncoderConfig) -> dict[str, Any]:
    """Describe an export with a news encoder; see :meth:`Task.says`."""
    model = config.model
    return {
        "max_title_tokens": config.data.max_title_tokens,
        "max_body_tokens": None,
        "history_length": None,
        "pad_to_max": config.data.pad_to_max,
        "model_settings": {
            "pooling": model.pooling,
            "pooling_mask": model.pooling_mask,
            "query_dim": model.query_dim,
            "news_dim": model.news_dim,
            "user_encoder": None,
            "history_padding": None,
            **asdict(part_of(model, "pooling")),
        },
    }
