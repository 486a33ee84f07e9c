"""Evaluators by name: what the validation of a click task measures. No torch at import.

A new evaluator is a class, here or in its own file, and a line of the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.config.parts import Part, Registry

if TYPE_CHECKING:
    from trainer.config.clicks import ClickConfig
    from trainer.engine.validation import Validation
    from trainer.tasks.finetune.clicks import ClickData
    from trainer.tasks.finetune.sources import ClickSources

EVALUATORS: Registry = {"mind": "trainer.evaluate.evaluators:Mind"}


@dataclass(frozen=True, kw_only=True)
class Evaluator(Part, ABC):
    """Named metrics of a model on a click log; its fields are settings of ``validation``."""

    metrics: ClassVar[tuple[str, ...]]
    """Names that ``validation.metric`` may have; higher is better."""

    @abstractmethod
    def open(self, config: ClickConfig, sources: ClickSources, data: ClickData) -> Validation:
        """Open what a run is measured on, by ``config.validation``.

        Args:
            config: The run.
            sources: Opened data of the run.
            data: Data half of the run's task.

        Raises:
            TinyNewsRecError: The set is missing, or does not fit the run.
        """


@dataclass(frozen=True, kw_only=True)
class Mind(Evaluator):
    """MIND's four metrics, as ``tnr evaluate`` measures them."""

    metrics = ("auc", "mrr", "ndcg5", "ndcg10")

    def open(self, config: ClickConfig, sources: ClickSources, data: ClickData) -> Validation:
        """See :meth:`Evaluator.open`."""
        from trainer.tasks.finetune.validation import open_validation

        return open_validation(config, sources, data)
