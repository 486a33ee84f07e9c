"""Post-training (step 1) and its distillation (stage I): settings and tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from trainer.config.distill import DistillConfig, TeachersConfig
from trainer.config.ranges import Count, Length
from trainer.config.schema import DataConfig, EncoderConfig, Parts, TextCount
from trainer.errors import ConfigError
from trainer.tasks.sources import Sources
from trainer.tasks.task import Task, encoder_says

if TYPE_CHECKING:
    from torch import nn

    from trainer.tasks.base import TaskData


@dataclass(frozen=True, kw_only=True)
class PairDataConfig(DataConfig):
    """Which article set is read, and how titles and bodies are cut."""

    max_body_tokens: Length = 512
    """Longest body in tokens, special tokens included."""
    num_negatives: Count = 9
    """Negatives per sample: titles of other articles."""
    negatives_from: Literal["corpus", "window"] = "corpus"
    """Draw negatives from the whole corpus, or from the ``window_shards`` shards that contain the
    sample. The window needs no other shards on this machine, but is less diverse: at 2 M articles
    in shards of 4,096, the negatives of 200 global batches of 32 are 15,900 different articles of 4
    shards instead of 56,800 of all 489. Negatives from the window are harder to tell apart only if
    neighbours in the set are alike; in a set in random order they are not harder (measured)."""
    static_negatives: bool = False
    """Draw a sample's negatives once for all epochs instead of anew in each epoch."""


@dataclass(frozen=True, kw_only=True)
class PostTrainDataConfig(PairDataConfig):
    """Settings of post-training data, where negatives may be the titles of the batch."""

    in_batch_negatives: bool = False
    """Use the titles of the other samples of the global batch as negatives."""


@dataclass(frozen=True, kw_only=True)
class PairConfig(EncoderConfig):
    """Configuration of a run over titles and bodies."""

    data: PairDataConfig = field(default_factory=PairDataConfig)
    """Shard sets and lengths."""

    batch_settings: ClassVar[tuple[str, ...]] = ("data.num_negatives",)

    @property
    def texts(self) -> Sequence[Parts]:
        """See :attr:`TrainConfig.texts`."""
        data = self.data
        return ((("title", data.max_title_tokens),), (("body", data.max_body_tokens),))

    def most_texts(self, samples: int) -> Sequence[TextCount]:
        """See :meth:`TrainConfig.most_texts`."""
        data = self.data
        titles = samples * (1 if self.takes_whole_batch else 1 + data.num_negatives)
        return (
            TextCount(titles, data.max_title_tokens),
            TextCount(samples, data.max_body_tokens),
        )

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        if self.data.negatives_from == "window" and self.data.static_negatives:
            raise _apart("data.static_negatives")
        super().check()


@dataclass(frozen=True, kw_only=True)
class PostTrainConfig(PairConfig):
    """Post-training (step 1): match titles with bodies."""

    task: Literal["post_train"] = "post_train"
    data: PostTrainDataConfig = field(default_factory=PostTrainDataConfig)
    """Shard sets and lengths."""

    @property
    def takes_whole_batch(self) -> bool:
        """See :attr:`TrainConfig.takes_whole_batch`."""
        return self.data.in_batch_negatives

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        if self.data.negatives_from == "window" and self.data.in_batch_negatives:
            raise _apart("data.in_batch_negatives")
        super().check()


@dataclass(frozen=True, kw_only=True)
class PairTeachersConfig(TeachersConfig):
    """The M post-trained teachers, in order."""

    logits: Literal["computed", "stored"] = "computed"
    """Score a body's titles with the teachers' vectors (``computed``), or read scores that ``tnr
    teachers logits`` has stored for every epoch's negatives, ``1 + N`` per sample (``stored``).
    Stored scores save work if ``loss.embedding`` is 0: no vectors are read, and only the bodies'
    own rows."""


@dataclass(frozen=True, kw_only=True)
class PostTrainDistillConfig(PairConfig, DistillConfig):
    """Stage I: a student learns to match titles with bodies from post-trained teachers."""

    task: Literal["post_train_distill"] = "post_train_distill"
    teachers: PairTeachersConfig = field(default_factory=PairTeachersConfig)
    """Teachers to distil from."""

    @property
    def reads_vectors(self) -> bool:
        """See :attr:`DistillConfig.reads_vectors`."""
        return self.teachers.logits == "computed" or self.loss.embedding > 0

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        if self.teachers.logits == "stored" and self.teachers.source == "live":
            raise ConfigError(
                "teachers.logits is stored, but teachers.source is live, and live teachers do "
                "not read columns: leave it at computed"
            )
        super().check()


C = TypeVar("C", bound=PairConfig)


def _apart(name: str) -> ConfigError:
    return ConfigError(
        f"data.negatives_from window and {name} contradict each other, because windows change "
        "with the epoch and are not a batch: leave one of them out"
    )


class _Pairs(Task[C]):
    """Common parts of both tasks."""

    stage = 1

    def data(self, config: C, sources: Sources) -> TaskData:
        """See :meth:`Task.data`."""
        from trainer.tasks.post_train.pairs import PostTrainData

        return PostTrainData(config, sources)

    def says(self, config: C) -> dict[str, Any]:
        """See :meth:`Task.says`."""
        return encoder_says(config) | {
            "news_text": [["title", config.data.max_title_tokens]],
            "max_body_tokens": config.data.max_body_tokens,
        }


class PostTrain(_Pairs[PostTrainConfig]):
    """Task that learns which title belongs to a body."""

    config = PostTrainConfig

    def build(
        self, config: PostTrainConfig, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """See :meth:`Task.build`."""
        from trainer.tasks.models import new_encoder
        from trainer.tasks.post_train.pairs import PostTrainData, PostTrainModule

        encoder, notes = new_encoder(config, sources.tokens)
        module = PostTrainModule(encoder, in_batch_negatives=config.data.in_batch_negatives)
        return module, PostTrainData(config, sources, notes=notes)


class PostTrainDistill(_Pairs[PostTrainDistillConfig]):
    """Stage I of the distillation."""

    config = PostTrainDistillConfig

    def build(
        self, config: PostTrainDistillConfig, sources: Sources, tick: Callable[[], object]
    ) -> tuple[nn.Module, TaskData]:
        """See :meth:`Task.build`."""
        from trainer.tasks.distill import teacher_names
        from trainer.tasks.models import new_encoder
        from trainer.tasks.post_train.pairs import PostTrainData, PostTrainDistillModule
        from trainer.tasks.post_train.teachers import open_signals

        signals = open_signals(config, sources)
        encoder, notes = new_encoder(config, sources.tokens)
        names = teacher_names(config.teachers.models)
        module = PostTrainDistillModule(encoder, signals.dims, config.loss, names, signals.say)
        return module, PostTrainData(config, sources, signals, notes=notes)

    def beside(self, config: PostTrainDistillConfig, teacher_dims: Sequence[int]) -> int:
        """See :meth:`Task.beside`."""
        width = config.model.news_dim
        return sum(dim * width + width for dim in teacher_dims)

    def drawn(
        self, config: PostTrainDistillConfig, articles: int, units: int
    ) -> tuple[str, int] | None:
        """See :meth:`Task.drawn`."""
        from trainer.engine.schedule import epochs_read

        if config.teachers.logits != "stored":
            return None
        epochs = 1 if config.data.static_negatives else epochs_read(config.run, units)
        values = epochs * articles * (1 + config.data.num_negatives)
        return f"logits of {len(config.teachers.models)} teachers in {epochs} epochs", values
