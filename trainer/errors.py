"""Errors of the project: those of :mod:`shards`, and those that only the trainer raises.

Exit codes of every command: 0 done, 1 failed, 2 usage, 75 stopped with a checkpoint, to be requeued
(``EX_TEMPFAIL`` of sysexits.h).
"""

from shards.errors import ColumnError, DamageError, DataError, TinyNewsRecError, UsageError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REQUEUE = 75


class ConfigError(UsageError):
    """A recipe or an override is wrong, or two settings contradict each other."""


class ModelError(TinyNewsRecError):
    """A model, tokenizer or backbone cannot be loaded or does not match its use."""


class CheckpointError(TinyNewsRecError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class TrainingError(TinyNewsRecError):
    """Training cannot continue: a value is not finite, or a rank does not answer."""


class StopForRequeue(TinyNewsRecError):
    """Training was asked to stop, has saved a checkpoint, and can be started again."""

    exit_code = EXIT_REQUEUE


__all__ = [
    "EXIT_DONE",
    "EXIT_FAILED",
    "EXIT_REQUEUE",
    "EXIT_USAGE",
    "CheckpointError",
    "ColumnError",
    "ConfigError",
    "DamageError",
    "DataError",
    "ModelError",
    "StopForRequeue",
    "TinyNewsRecError",
    "TrainingError",
    "UsageError",
]
