"""Saving of a session: training waits for the copy in memory, a thread writes it."""

import contextlib
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from trainer.checkpoint.binding import bind, binding_of
from trainer.checkpoint.retention import METRIC, retention_of
from trainer.checkpoint.store import stated_at
from trainer.checkpoint.tensors import MODEL, OPTIMIZER, write_tensors
from trainer.engine.callback import Callback, Callbacks, Run
from trainer.engine.session import Session, Tensors
from trainer.engine.step import Step
from trainer.errors import CheckpointError, ConfigError
from trainer.monitor.monitor import Record


class Saver(Callback):
    """Callback that saves the checkpoints of a run; at most one is being written at a time.

    A checkpoint exists once it is published, and only then does the run folder's ``state.json``
    mention it. An error in rank 0's thread stops all ranks at their next step, when they agree on
    flags.

    Args:
        run: The run.
        callbacks: Called on rank 0, before and after a checkpoint is published.
    """

    def __init__(self, run: Run, callbacks: Callbacks) -> None:
        self._run, self._callbacks = run, callbacks
        self._is_background = run.config.run.background_saves
        self._metric = retention_of(run.config).metric
        self._is_validated = run.config.validates is not None
        self._value: float | None = None
        self._is_known = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, session: Session, state: Mapping[str, Any]) -> None:
        """Copy a session's state and write it, perhaps in a thread; called by all ranks.

        Args:
            session: Session to save.
            state: Content of the checkpoint's ``state.json``.

        Raises:
            CheckpointError: This save, or the one before it, could not be written.
            ConfigError: ``run.best_metric`` is not logged.
        """
        self.join()
        tensors = session.tensors(to_own=self._is_background)
        step, stated = session.step, dict(state)

        def write() -> None:
            self._write(step, stated, *tensors)

        if not self._is_background:
            self._run.distributed.from_main(write)
        elif self._run.distributed.is_main:
            self._thread = threading.Thread(target=self._try, args=(write,), name="save")
            self._thread.start()

    def join(self) -> None:
        """Wait until the current save is published; called by all ranks.

        Raises:
            CheckpointError: The save could not be written.
            ConfigError: ``run.best_metric`` is not logged.
        """
        self._wait()
        self._run.distributed.from_main(self._raise)

    def state(self) -> dict[str, Any]:
        """Return name and value of the metric that chooses the best checkpoint, if any."""
        name, value = self._metric, self._value
        return {} if name is None else {METRIC: {"name": name, "value": value}}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore that value if it belongs to the same metric."""
        entry = state.get(METRIC) or {}
        self._value = entry.get("value") if entry.get("name") == self._metric else None

    def before_step(self, step: Step) -> None:
        """Forget a validation's value, which is valid only for the weights that it measured.

        A loss from a few steps ago is good enough for a checkpoint.
        """
        if self._is_validated:
            self._value = None

    def flag(self, step: Step) -> int:
        """Return whether a save failed here, so that all ranks must stop."""
        return int(self._error is not None)

    def on_flag(self, highest: int) -> None:
        """Raise rank 0's error on every rank.

        Raises:
            CheckpointError: A checkpoint could not be written in the background.
            ConfigError: ``run.best_metric`` is not logged.
        """
        if highest:
            self._run.distributed.from_main(self._raise)

    def after_step(self, session: Session, step: Step) -> None:
        """Save every few steps."""
        step.is_saved |= step.number % self._run.config.run.checkpoint_every == 0

    def on_log(self, record: Record) -> None:
        """Remember the best metric's value; None if it is not finite.

        If the first record lacks the metric, this is an error that all ranks learn of at their next
        step; a validation's metric is expected only from the first validation on.
        """
        if self._metric is None:
            return
        if self._metric in record.values:
            value = float(record.values[self._metric])
            self._value = value if math.isfinite(value) else None
            self._is_known = True
        elif not self._is_known and not self._is_validated:
            self._error = ConfigError(
                f"run.best_metric is {self._metric!r}, but this run does not log it; expected one "
                f"of {', '.join(sorted(record.values))}"
            )

    def on_stop(self, error: BaseException) -> None:
        """Wait for the current save, without the other ranks."""
        self._wait()
        if self._error is not None and self._error is not error:
            with contextlib.suppress(OSError):
                self._run.warn(str(self._error))

    def _write(self, step: int, state: dict[str, Any], model: Tensors, optimizer: Tensors) -> None:
        try:
            for each in self._callbacks:
                each.before_checkpoint()
            state = bind(state, (MODEL, OPTIMIZER))
            binding = binding_of(stated_at(step, state))
            self._run.store.save(
                step, state, lambda folder: write_tensors(folder, model, optimizer, binding)
            )
            for each in self._callbacks:
                each.after_checkpoint(step)
        except OSError as error:
            raise CheckpointError(
                f"the run folder could not be written while step {step} was saved: "
                f"{error.strerror or error}; free space or repair the disk, and start the run "
                "again"
            ) from error

    def _try(self, write: Callable[[], None]) -> None:
        """Write in the thread; keep any error for the ranks."""
        try:
            write()
        except Exception as error:
            self._error = error

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
