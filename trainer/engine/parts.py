"""Callbacks of every run, and their order."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trainer.config.schema import TrainConfig
from trainer.engine.callback import Callback, Callbacks, Run
from trainer.engine.copies import Copies, copy_steps
from trainer.engine.distributed import Distributed
from trainer.engine.ending import Ending, Export
from trainer.engine.not_finite import NotFinite
from trainer.engine.profiling import StepProfiler
from trainer.engine.saving import Saver
from trainer.engine.schedule import total_steps
from trainer.engine.validation import Validation, Validator
from trainer.engine.watchdog import Watchdog
from trainer.errors import TrainingError
from trainer.monitor.report import Report
from trainer.tasks.base import TaskData


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All callbacks of a run, their shared state, and those that the loop uses by name."""

    run: Run
    callbacks: Callbacks
    not_finite: NotFinite
    validator: Validator
    saver: Saver
    copy_steps: list[int]


def build_parts(
    config: TrainConfig,
    task: nn.Module,
    data: TaskData,
    export: Export,
    distributed: Distributed,
    validation: Validation | None,
    others: Sequence[Callback],
) -> Parts:
    """Make the callbacks of a run; the arguments are those of ``Trainer``."""
    run = Run(config, distributed, total_steps(config.run, data.order.num_units))
    copied = copy_steps(config.run.copies, run.steps)
    rank, ranks, folder = distributed.rank, distributed.world_size, run.folder
    callbacks = Callbacks()

    def note_hang(reason: str) -> None:
        callbacks.stop(TrainingError(reason))

    watchdog = Watchdog(rank, ranks, config.run.hang_timeout_s, folder.log, note_hang)
    run.at = watchdog.at
    not_finite = NotFinite(config.run, data.order, run.warn, rank)
    validator = Validator(run, validation)
    ending = Ending(run, validator, export)
    saver = Saver(run, callbacks)
    callbacks += [
        # First: it watches the others, and ends last.
        watchdog,
        StepProfiler(config.run.profile_steps, folder.path, rank, run.say),
        # Counts a skipped step before the record is written.
        not_finite,
        validator,
        # The user's callbacks: their metrics are logged, and their changes at the end are exported.
        *others,
        # At an early end, it writes its last state after the callbacks below have written theirs.
        ending,
        # A record has the metrics of all callbacks above; it is written before the checkpoint.
        Report(run, task, validator.finals, callbacks),
        # A copy is written before the checkpoint from which a resumed run continues.
        Copies(copied, folder.copy, ending.publish),
        # At an early end, the running save is waited for before anything else.
        saver,
    ]
    return Parts(
        run=run,
        callbacks=callbacks,
        not_finite=not_finite,
        validator=validator,
        saver=saver,
        copy_steps=copied,
    )
