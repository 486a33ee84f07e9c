"""Settings of distillation tasks: the teachers, and the weights of the loss."""

from dataclasses import dataclass, field
from typing import Literal

from trainer.config.ranges import NotNegative, Positive
from trainer.config.schema import EncoderConfig
from trainer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """The M teachers of a distillation, in order."""

    models: tuple[str, ...] = ()
    """Folders of exported teacher models."""
    source: Literal["stored", "live"] = "stored"
    """``stored`` reads the columns of ``tnr teachers cache``; ``live`` runs every teacher at every
    step (the tests' oracle and the benchmark's baseline)."""
    dtype: Literal["float16", "float32", "int8"] = "float16"
    """Storage type of the columns to read (``tnr teachers cache --dtype``)."""
    compute: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the columns to read were computed (``tnr teachers cache --compute``)."""
    follow: bool = False
    """Start while the columns are still being filled: a batch that needs a missing cell waits for
    the cell and prints a line. The batches equal those of a run that started later. Articles are
    drawn from the whole set unless ``data.negatives_from`` is ``window``, so without ``window`` a
    run waits for almost all cells. A waiting run answers a stop signal once the cell has arrived.
    """
    follow_timeout_s: Positive = 900.0
    """With ``follow``: end the run with an error after this many seconds without a new cell of any
    teacher; must be less than ``run.hang_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms, and switches between the paper and its released code."""

    target: NotNegative = 1.0
    """Weight of the cross-entropy with the true label."""
    distill: NotNegative = 1.0
    """Weight of the cross-entropy with the teachers' soft labels."""
    embedding: NotNegative = 1.0
    """Weight of the distance between projected teacher vectors and the student's."""
    temperature: Positive = 1.0
    """T_DP and T_FT of the paper."""
    temperature_squared: bool = True
    """Multiply the distillation loss by the temperature squared (paper; the released code does
    not)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(EncoderConfig):
    """Configuration of a run with teachers."""

    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    """Teachers to distil from."""
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
            "teachers.follow waits for stored columns, but this run does not read any: leave it out"
        )
    if any("://" in location for location in config.locations):
        raise ConfigError(
            "teachers.follow watches columns in a folder and does not see cells that reach a set "
            "at a URL later: leave it out, and start once all cells are there"
        )
    if teachers.follow_timeout_s >= hang_s:
        raise ConfigError(
            f"teachers.follow_timeout_s {teachers.follow_timeout_s:g} is not below "
            f"run.hang_timeout_s {hang_s:g}, so a waiting rank would be taken for hung: lower "
            "teachers.follow_timeout_s or raise run.hang_timeout_s"
        )
