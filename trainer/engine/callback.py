"""Callbacks of the training loop: the hooks, and the list of a run's callbacks.

A callback is a class in one file that overrides the hooks it needs::

    class Waiting(Callback):
        def after_step(self, session, step):
            step.values["speed/waited_s"] = step.waited_s

    Trainer(..., callbacks=[Waiting()])

:mod:`trainer.engine.parts` lists the callbacks of every run in their order.
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
    """State that the loop and its callbacks share.

    Args:
        config: Configuration of the run.
        distributed: The processes.
        steps: Number of steps of the whole run.

    Attributes:
        folder: The run folder, open only on rank 0.
        store: Store of the run's checkpoints.
        at: Function that tells the watchdog what this rank is doing.
    """

    def __init__(self, config: TrainConfig, distributed: "Distributed", steps: int) -> None:
        self.config, self.distributed, self.steps = config, distributed, steps
        self.folder = RunFolder(config.run.dir)
        self.store = CheckpointStore(self.folder.checkpoints, retention_of(config), self.warn)
        self.at: Callable[[str], None] = lambda phase: None

    def say(self, line: str) -> None:
        """Print a line to people, once for all ranks."""
        if self.distributed.is_main:
            self.folder.say(line)

    def warn(self, line: str) -> None:
        """Print a warning, once for all ranks."""
        self.say(f"WARNING: {line}")


class Callback:
    """Hooks of the loop, in the order of a run.

    Every rank calls every hook unless the hook's docstring says otherwise, and what a hook asks for
    (a record, a checkpoint) is the same on every rank. A callback with state in checkpoints
    overrides both :meth:`state` and :meth:`resume`.
    """

    def __enter__(self) -> "Callback":
        """Start, before the session is made."""
        return self

    def __exit__(self, *error: Any) -> None:
        """End, however the run ends; in reverse order, before :meth:`on_stop`."""

    def state(self) -> dict[str, Any]:
        """Return the callback's entries in a checkpoint's ``state.json``, under unique names."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint's ``state.json``, at a resume and after a rollback.

        A checkpoint of a run without the callback lacks its entries.
        """

    def on_start(self, session: "Session") -> None:
        """Prepare for steps: at the start, at a resume, and after a rollback."""

    def before_step(self, step: "Step") -> None:
        """Prepare for a step; ``step.is_logged = True`` logs its metrics."""

    def flag(self, step: "Step") -> int | None:
        """Return a number for the one all-reduce of a step, after its backward pass.

        None takes no part in the all-reduce; then every rank must return None.
        """
        return None

    def on_flag(self, highest: int) -> None:
        """Receive the highest number that a rank returned, before the optimizer's step."""

    def after_step(self, session: "Session", step: "Step") -> None:
        """Act after a step; ``step.values`` are logged, ``step.is_saved = True`` saves the step."""

    def on_log(self, record: "Record") -> None:
        """Receive the record of a logged step; only on rank 0."""

    def before_checkpoint(self) -> None:
        """Make durable what must not be older than the checkpoint about to be published.

        Called by rank 0, in the thread that writes the checkpoint.
        """

    def after_checkpoint(self, number: int) -> None:
        """React to the published checkpoint of a step; called like :meth:`before_checkpoint`."""

    def on_end(self, session: "Session") -> None:
        """Finish, after the last step was taken and saved."""

    def on_stop(self, error: BaseException) -> None:
        """Clean up after an error or a signal; in reverse order.

        If the run hangs, the watchdog calls this from its own thread.
        """


class Callbacks(list[Callback]):
    """Callbacks of a run, in order."""

    def state(self, session: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's ``state.json``: the entries of the session and of all callbacks.

        Raises:
            ValueError: Two callbacks use the same name.
        """
        kept = dict(session)
        for each in self:
            found = each.state()
            if taken := found.keys() & {*kept, "step", "format"}:
                raise ValueError(f"{type(each).__name__}.state(): {taken} are taken; rename them")
            kept |= found
        return kept

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state of all callbacks from a checkpoint.

        Raises:
            CheckpointError: A callback cannot read its state.
        """
        try:
            for each in self:
                each.resume(checkpoint.state)
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be read: its state.json was edited or comes from "
                f"another version ({error})"
            ) from error

    def stop(self, error: BaseException) -> None:
        """Tell all callbacks of an early end, in reverse order, despite errors."""
        with contextlib.ExitStack() as stack:
            for each in self:
                stack.callback(each.on_stop, error)
