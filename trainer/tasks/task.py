"""What the rest of the project asks a task.

No torch here: commands read it before they load any.
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
    """One training task: its settings, its data half, its module half, and what its export says.

    :data:`trainer.tasks.registry.TASKS` names all tasks; ``trainer/README.md`` adds one.
    """

    config: type[C]
    """Its settings; ``task`` has the task's name as its default."""
    stage: ClassVar[int | None] = None
    """Which stage's teachers this task makes (``tnr teachers cache --stage``); None makes none."""

    @property
    def name(self) -> str:
        """Its name."""
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
        """Make the data half without teachers and stored states: enough to count and to plan."""

    @abstractmethod
    def build(
        self, config: C, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """Make both halves.

        Initial weights follow torch's random state.

        Args:
            config: The run.
            sources: Its data.
            tick: Called again and again while something takes long.

        Returns:
            The module half, with the trained model as ``.model``, and the data half.

        Raises:
            TinyNewsRecError: Data, teachers or the initial model are missing or do not fit each
                other.
        """

    @abstractmethod
    def says(self, config: C) -> dict[str, Any]:
        """Describe the texts and settings of a run's model for those who read its export."""

    def validation(self, config: C, sources: Sources, data: TaskData) -> Validation | None:
        """Open what a run is measured on while it trains; None where it is not.

        Raises:
            TinyNewsRecError: It is missing, or does not fit the run.
        """
        return None

    def beside(self, config: C, teacher_dims: Sequence[int]) -> int:
        """Count the parameters that are trained beside the model, such as projections.

        Args:
            config: The run.
            teacher_dims: Width of each teacher's vectors.
        """
        return 0

    def drawn(self, config: C, articles: int, units: int) -> tuple[str, int] | None:
        """Count what is stored of each teacher for the negatives that a run draws.

        Args:
            config: The run.
            articles: Of its set.
            units: Of an epoch.

        Returns:
            What it is, in words, and how many values a teacher; None where nothing is stored.
        """
        return None


def encoder_says(config: EncoderConfig) -> dict[str, Any]:
    """Describe what every export with a news encoder says, see :meth:`Task.says`."""
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
