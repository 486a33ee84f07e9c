"""What the training loop drives: a class with hooks, and the list of all of a run.

A callback is a class in one file that overrides the hooks it needs::

    class Waiting(Callback):
        def after_step(self, session, step):
            step.values["speed/waited_s"] = step.waited_s

    Trainer(..., callbacks=[Waiting()])

:mod:`trainer.engine.parts` lists those of every run, in their order.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.retention import retention_of
from trainer.checkpoint.store import Checkpoint, CheckpointStore
from trainer.config.schema import TrainConfig
from trainer.engine.run_folder import RunFolder
from trainer.errors import CheckpointError

if TYPE_CHECKING:
    from trainer.engine.distributed import Distributed
    from trainer.engine.session import Session
    from trainer.engine.step import Step
    from trainer.monitor.monitor import Record


class Run:
    """What the loop and its callbacks share.

    Args:
        config: The run.
        distributed: The processes.
        steps: Steps of the whole run.

    Attributes:
        folder: The run folder, open on rank 0 alone.
        store: Its checkpoints.
        at: Tells the watchdog what this rank does from now on.
    """

    def __init__(self, config: TrainConfig, distributed: "Distributed", steps: int) -> None:
        self.config, self.distributed, self.steps = config, distributed, steps
        self.folder = RunFolder(config.run.dir)
        self.store = CheckpointStore(self.folder.checkpoints, retention_of(config), self.warn)
        self.at: Callable[[str], None] = lambda phase: None

    def say(self, line: str) -> None:
        """Say a line to people, once."""
        if self.distributed.is_main:
            self.folder.say(line)

    def warn(self, line: str) -> None:
        """Say what should not be overlooked."""
        self.say(f"WARNING: {line}")


class Callback:
    """Hooks of the loop, in the order of a run.

    Every rank calls every hook that does not say otherwise, and what a hook asks for (a record, a
    checkpoint) is the same on every rank. A callback with state in checkpoints overrides
    :meth:`state` and :meth:`resume` together.
    """

    def __enter__(self) -> "Callback":
        """Begin; before the session is made."""
        return self

    def __exit__(self, *error: Any) -> None:
        """End, however the run ends; in reverse order, before :meth:`on_stop`."""

    def state(self) -> dict[str, Any]:
        """Return its entries of a checkpoint's ``state.json``, under names of its own."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint's ``state.json`` says, at a resume and after going back.

        A checkpoint of a run without the callback lacks its entries.
        """

    def on_start(self, session: "Session") -> None:
        """Prepare for steps that begin: at the start, at a resume, and after going back."""

    def before_step(self, step: "Step") -> None:
        """Prepare for a step; ``step.is_logged = True`` writes its numbers down."""

    def flag(self, step: "Step") -> int | None:
        """Give a number to the one all-reduce of a step, after its backward pass.

        None takes no part in it, and must then be what every rank gives.
        """
        return None

    def on_flag(self, highest: int) -> None:
        """Hear the highest number that a rank gave, before the optimizer's step."""

    def after_step(self, session: "Session", step: "Step") -> None:
        """Work after a step; ``step.values`` are logged, ``step.is_saved = True`` saves it."""

    def on_log(self, record: "Record") -> None:
        """Hear what was written down about a step; rank 0 alone."""

    def before_checkpoint(self) -> None:
        """Make durable what must not be older than a checkpoint that is about to be published;
        called by rank 0, in the thread that writes it.
        """

    def after_checkpoint(self, number: int) -> None:
        """Hear that the checkpoint of a step is there; called as :meth:`before_checkpoint` is."""

    def on_end(self, session: "Session") -> None:
        """Finish; the last step is taken and saved."""

    def on_stop(self, error: BaseException) -> None:
        """Clean up after an error or a signal; in reverse order.

        The watchdog calls it in a thread of its own where the run hangs.
        """


class Callbacks(list[Callback]):
    """Those of a run, in order."""

    def state(self, session: dict[str, Any]) -> dict[str, Any]:
        """What ``state.json`` of a checkpoint says: the session's entries and those of all.

        Raises:
            ValueError: Two use one name.
        """
        kept = dict(session)
        for each in self:
            found = each.state()
            if taken := found.keys() & {*kept, "step", "format"}:
                raise ValueError(f"{type(each).__name__}.state(): {taken} are taken; rename them")
            kept |= found
        return kept

    def resume(self, checkpoint: Checkpoint) -> None:
        """Give all of them the state of a checkpoint.

        Raises:
            CheckpointError: One cannot read it.
        """
        try:
            for each in self:
                each.resume(checkpoint.state)
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be read: its state.json was edited, or is of "
                f"another version ({error})"
            ) from error

    def stop(self, error: BaseException) -> None:
        """Tell all of an early end, in reverse order, whatever fails among them."""
        with contextlib.ExitStack() as stack:
            for each in self:
                stack.callback(each.on_stop, error)
