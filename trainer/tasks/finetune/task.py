"""Finetuning (step 3) and its distillation (stage II): settings and tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from trainer.config.clicks import ClickConfig
from trainer.config.distill import DistillConfig, LossConfig
from trainer.config.parts import part_of
from trainer.evaluate.evaluators import Evaluator
from trainer.tasks.finetune.sources import ClickSources, open_clicks
from trainer.tasks.sources import Sources
from trainer.tasks.task import Task, encoder_says

if TYPE_CHECKING:
    from torch import nn

    from trainer.engine.validation import Validation
    from trainer.tasks.base import TaskData

C = TypeVar("C", bound=ClickConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ClickConfig):
    """Finetuning (step 3): which candidate was clicked?"""

    task: Literal["finetune"] = "finetune"


@dataclass(frozen=True, kw_only=True)
class ClickLossConfig(LossConfig):
    """Weights of the loss terms, and switches between the paper and its released code."""

    shared_projection: bool = False
    """Use one projection per teacher for news and user vectors (released code) instead of two."""
    padded_slots: bool = False
    """Include empty history slots in the embedding loss (released code)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneDistillConfig(ClickConfig, DistillConfig):
    """Stage II: a student learns to recommend from finetuned teachers and from the clicks."""

    task: Literal["finetune_distill"] = "finetune_distill"
    loss: ClickLossConfig = field(default_factory=ClickLossConfig)
    """Weights and switches of the loss."""

    @property
    def encodes_empty_slots(self) -> str | None:
        """See :attr:`ClickConfig.encodes_empty_slots`."""
        own = "loss.padded_slots true" if self.loss.padded_slots else None
        return super().encodes_empty_slots or own


class _Clicks(Task[C]):
    """Common parts of both tasks."""

    stage = 2

    def open(self, config: C) -> Sources:
        """See :meth:`Task.open`."""
        return open_clicks(config)

    def data(self, config: C, sources: Sources) -> TaskData:
        """See :meth:`Task.data`."""
        from trainer.tasks.finetune.clicks import ClickData

        return ClickData(config, of_clicks(sources))

    def validation(self, config: C, sources: Sources, data: TaskData) -> Validation | None:
        """See :meth:`Task.validation`."""
        from trainer.tasks.finetune.clicks import ClickData

        if config.validation.clicks is None:
            return None
        assert isinstance(data, ClickData)
        evaluator: Evaluator = part_of(config.validation, "evaluator")
        return evaluator.open(config, of_clicks(sources), data)

    def says(self, config: C) -> dict[str, Any]:
        """See :meth:`Task.says`."""
        model = config.model
        said = encoder_says(config) | {
            "news_text": [list(part) for part in config.data.news_parts],
            "history_length": config.clicks_read,
        }
        said["model_settings"] |= {
            "user_encoder": model.user_encoder,
            "history_padding": model.history_padding,
            **asdict(config.user_encoder),
        }
        return said


class Finetune(_Clicks[FinetuneConfig]):
    """Task that learns to recommend from clicks alone (PLM-NR)."""

    config = FinetuneConfig

    def build(
        self, config: FinetuneConfig, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """See :meth:`Task.build`."""
        from trainer.tasks.finetune.clicks import ClickData, FinetuneModule, new_states
        from trainer.tasks.models import new_recommender

        clicks = of_clicks(sources)
        recommender, notes = new_recommender(config, clicks.tokens)
        states = new_states(config, recommender, clicks.tokens, tick)
        module = FinetuneModule(recommender)
        return module, ClickData(config, clicks, states=states, notes=notes)


class FinetuneDistill(_Clicks[FinetuneDistillConfig]):
    """Stage II of the distillation."""

    config = FinetuneDistillConfig

    def build(
        self, config: FinetuneDistillConfig, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """See :meth:`Task.build`."""
        from trainer.tasks.distill import teacher_names
        from trainer.tasks.finetune.clicks import ClickData, FinetuneDistillModule, new_states
        from trainer.tasks.finetune.teachers import open_signals
        from trainer.tasks.models import new_recommender

        clicks = of_clicks(sources)
        signals = open_signals(config, clicks)
        recommender, notes = new_recommender(config, clicks.tokens)
        states = new_states(config, recommender, clicks.tokens, tick)
        names = teacher_names(config.teachers.models)
        module = FinetuneDistillModule(recommender, signals.dims, config.loss, names, signals.say)
        return module, ClickData(config, clicks, signals, states, notes=notes)

    def beside(self, config: FinetuneDistillConfig, teacher_dims: Sequence[int]) -> int:
        """See :meth:`Task.beside`."""
        width = config.model.news_dim
        projections = 1 if config.loss.shared_projection else 2
        return projections * sum(dim * width + width for dim in teacher_dims)


def of_clicks(sources: Sources) -> ClickSources:
    """Return the sources, typed as those of a click task."""
    assert isinstance(sources, ClickSources)
    return sources
