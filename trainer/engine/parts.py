"""What the loop of a run drives, and in which order."""

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
    """All callbacks of a run, what they share, and those that the loop knows by name."""

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
    """Make what a run drives; the arguments are those of ``Trainer``."""
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
        # Watches what the others do, and is left last.
        watchdog,
        StepProfiler(config.run.profile_steps, folder.path, rank, run.say),
        # Counts a step that is left out before the record is written.
        not_finite,
        validator,
        # The user's: what they measure is logged, what they change at the end is exported.
        *others,
        # At an early end, its last word on the disk follows what those below leave there.
        ending,
        # A record has the numbers of all above; it is there before the checkpoint.
        Report(run, task, validator.finals, callbacks),
        # A copy is there before the checkpoint from which a resumed run goes on.
        Copies(copied, folder.copy, ending.publish),
        # At an early end, the save on its way is waited for before anything else.
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
