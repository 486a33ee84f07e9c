"""What distillation tasks are told beside the rest: their teachers, and the weights of the loss."""

from dataclasses import dataclass, field
from typing import Literal

from trainer.config.ranges import NotNegative, Positive
from trainer.config.schema import EncoderConfig
from trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """The M teachers of a distillation, in order."""

    models: tuple[str, ...] = ()
    """Exported teacher models (folders)."""
    source: Literal["stored", "live"] = "stored"
    """``stored`` reads the columns of ``tnr teachers cache``; ``live`` runs every teacher at every
    step (the oracle of the tests and the yardstick of the benchmark)."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """How the columns to read are stored (``tnr teachers cache --dtype``)."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """How the columns to read were computed (``tnr teachers cache --compute``)."""
    follow: bool = False
    """Start while the columns are being filled: a batch that needs a cell which is not there yet
    waits for it, and says so. The batches are those of a run that started later. Articles are drawn
    from everywhere unless ``data.negatives_from`` is ``window``, so other runs wait for almost all
    cells. A run that waits answers a signal to stop once the cell has come."""
    follow_timeout_s: Positive = 900.0
    """With ``follow``: no new cell of any teacher for so long ends the run with an error; less than
    ``run.hang_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms of the loss, and the switches between the paper and its released
    code."""

    target: NotNegative = 1.0
    """Weight of the cross-entropy with the true label."""
    distill: NotNegative = 1.0
    """Weight of the cross-entropy with the teachers' soft label."""
    embedding: NotNegative = 1.0
    """Weight of the distance between projected teacher vectors and the student's."""
    temperature: Positive = 1.0
    """T_DP and T_FT of the paper."""
    temperature_squared: bool = True
    """Multiply the distillation loss by the temperature squared (paper; the released code does
    not)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(EncoderConfig):
    """A run with teachers."""

    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    """The teachers."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and switches of the loss."""

    @property
    def reads_vectors(self) -> bool:
        """Whether the run needs its teachers' vectors."""
        return True

    def check(self) -> None:
        """See :meth:`TrainConfig.check`."""
        if not self.teachers.models:
            raise ConfigError(
                f"teachers.models is empty: task {self.task} needs at least one teacher"
            )
        if self.teachers.follow:
            _check_follow(self)
        super().check()


def _check_follow(config: DistillConfig) -> None:
    teachers, hang_s = config.teachers, config.run.hang_timeout_s
    if teachers.source == "live":
        raise ConfigError(
            "teachers.follow waits for stored columns, but this run reads none: leave it out"
        )
    if any("://" in location for location in config.locations):
        raise ConfigError(
            "teachers.follow watches columns in a folder; cells that come to a set at a URL later "
            "are not seen: start once they are all there, without it"
        )
    if teachers.follow_timeout_s >= hang_s:
        raise ConfigError(
            f"teachers.follow_timeout_s {teachers.follow_timeout_s:g} is not below "
            f"run.hang_timeout_s {hang_s:g}: a rank that waits would be taken for hung; lower the "
            "one or raise the other"
        )
