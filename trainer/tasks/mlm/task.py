"""Masked language modelling: its settings and its task.

A backbone is pre-trained further on all articles of a set (DAPT), or on the articles that a click
log names (TAPT), as in Gururangan et al., "Don't Stop Pretraining" (2020). The export is a Hugging
Face folder: ``tnr train finetune --model.backbone.name RUN/export`` starts from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trainer.config.clicks import TextField
from trainer.config.ranges import Length, Limits
from trainer.config.schema import DataConfig, Parts, TextCount, TrainConfig
from trainer.errors import ConfigError
from trainer.tasks.sources import Sources
from trainer.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn

    from trainer.tasks.base import TaskData


@dataclass(frozen=True, kw_only=True)
class MlmDataConfig(DataConfig):
    """Which article set is read, how texts are cut, and which tokens are masked."""

    clicks: str | None = None
    """Read only the articles that this impression set names (TAPT); None reads all (DAPT)."""
    news_text: tuple[TextField, ...] = ("body",)
    """Fields of an article that are read, joined into one text in this order."""
    max_abstract_tokens: Length = 64
    """Longest abstract in tokens, special tokens included."""
    max_body_tokens: Length = 512
    """Longest body in tokens, special tokens included."""
    max_category_tokens: Length = 10
    """Longest category in tokens, special tokens included."""
    masked: Annotated[float, Limits(above=0, most=1)] = 0.15
    """Share of a text's tokens that are predicted, at least one token; special tokens never are. Of
    the predicted tokens, 80% are masked, 10% are replaced by a random token, and 10% stay, as in
    BERT."""


@dataclass(frozen=True, kw_only=True)
class MlmConfig(TrainConfig):
    """Masked language modelling (DAPT, TAPT): pre-train a backbone further."""

    task: Literal["mlm"] = "mlm"
    data: MlmDataConfig = field(default_factory=MlmDataConfig)
    """Shard sets and lengths."""

    @property
    def locations(self) -> tuple[str, ...]:
        """See :attr:`TrainConfig.locations`."""
        return tuple(filter(None, (self.data.articles, self.data.clicks)))

    @property
    def texts(self) -> Sequence[Parts]:
        """See :attr:`TrainConfig.texts`."""
        data = self.data
        return (tuple((name, getattr(data, f"max_{name}_tokens")) for name in data.news_text),)

    def most_texts(self, samples: int) -> Sequence[TextCount]:
        """See :meth:`TrainConfig.most_texts`."""
        (parts,) = self.texts
        return (TextCount(samples, sum(limit for _, limit in parts) - (len(parts) - 1)),)

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        fields = self.data.news_text
        if not fields or len(set(fields)) < len(fields):
            raise ConfigError(f"data.news_text is {' '.join(fields) or 'empty'}; name fields once")


class Mlm(Task[MlmConfig]):
    """Task that predicts masked tokens."""

    config = MlmConfig

    def data(self, config: MlmConfig, sources: Sources) -> TaskData:
        """See :meth:`Task.data`."""
        from trainer.tasks.mlm.masked import MlmData

        return MlmData(config, sources)

    def build(
        self, config: MlmConfig, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """See :meth:`Task.build`."""
        from trainer.config.validate import check_positions
        from trainer.models.build import build_backbone
        from trainer.models.probe import freeze_idle
        from trainer.tasks.mlm.masked import MaskedLanguageModel, MlmData, MlmModule, new_head

        tokens = sources.tokens
        backbone = build_backbone(config.model, vocab_size=tokens.vocab_size, pad_id=tokens.pad_id)
        check_positions(config, backbone.max_tokens, len(tokens.prefix_ids))
        idle = freeze_idle(backbone)
        model = MaskedLanguageModel(backbone, new_head(backbone, config.model.backbone.name))
        return MlmModule(model), MlmData(config, sources, [idle] if idle else [])

    def says(self, config: MlmConfig) -> dict[str, Any]:
        """See :meth:`Task.says`."""
        return {}
