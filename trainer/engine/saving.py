"""Saving a session: training waits for the copy in memory, a thread writes and publishes it."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from trainer.checkpoint.binding import bind, binding_of
from trainer.checkpoint.retention import METRIC, retention_of
from trainer.checkpoint.store import CheckpointStore, stated_at
from trainer.checkpoint.tensors import MODEL, OPTIMIZER, write_tensors
from trainer.config.schema import TrainConfig
from trainer.engine.distributed import Distributed
from trainer.engine.session import Session, Tensors
from trainer.errors import CheckpointError, ConfigError


class Saver:
    """Saves the checkpoints of a run; at most one is on its way to the disk at any time.

    A checkpoint is there once it is published, and only then does ``state.json`` of the run folder
    speak of it. What goes wrong in the thread of rank 0 stops all ranks at their next step: rank 0
    tells of :attr:`has_failed` when they agree, and then all call :meth:`raise_error`.

    Args:
        config: Its ``run.background_saves`` and what chooses the best checkpoint.
        store: Where checkpoints go.
        distributed: This process among the others.
        prepare: Called on rank 0 before a checkpoint is published: makes durable what must not be
            older than it.
        publish: Called on rank 0 with its step once a checkpoint is published.
    """

    def __init__(
        self,
        config: TrainConfig,
        store: CheckpointStore,
        distributed: Distributed,
        *,
        prepare: Callable[[], None],
        publish: Callable[[int], None],
    ) -> None:
        self._is_background = config.run.background_saves
        self._metric = retention_of(config).metric
        self._is_validated = config.validates is not None
        self._store = store
        self._distributed = distributed
        self._prepare = prepare
        self._publish = publish
        self._value: float | None = None
        self._step = 0
        self._is_known = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, session: Session, state: Mapping[str, Any]) -> None:
        """Take the state of a session and write it, or have it written; called by all ranks.

        Args:
            session: What is saved.
            state: What goes into its ``state.json``, besides the value of the best metric.

        Raises:
            CheckpointError: This save, or the one before it, could not be written.
            ConfigError: ``run.best_metric`` is not among what is logged.
        """
        self.join()
        tensors = session.tensors(to_own=self._is_background)
        step, stated = session.step, dict(state)
        if self._metric is not None:
            stated[METRIC] = {"name": self._metric, "value": self._value_at(step)}

        def write() -> None:
            self._write(step, stated, *tensors)

        if not self._is_background:
            self._distributed.from_main(write)
        elif self._distributed.is_main:
            self._thread = threading.Thread(target=self._try, args=(write,), name="save")
            self._thread.start()

    def join(self) -> None:
        """Wait until what is being saved is published; called by all ranks.

        Raises:
            CheckpointError: It could not be written.
            ConfigError: ``run.best_metric`` is not among what is logged.
        """
        self._wait()
        self.raise_error()

    def raise_error(self) -> None:
        """Raise on every rank what went wrong on rank 0, if anything did; called by all ranks."""
        self._distributed.from_main(self._raise)

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong here, so that all ranks have to stop."""
        return self._error is not None

    def close(self) -> Exception | None:
        """Wait for the save on its way, without the other ranks, and return what went wrong."""
        self._wait()
        return self._error

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over the value of the best metric from the checkpoint that a run goes on from."""
        entry = state.get(METRIC) or {}
        self._value = entry.get("value") if entry.get("name") == self._metric else None
        self._step = int(state.get("step", 0))

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Remember the best metric's value in a log line (rank 0); None where it is not finite.

        A name that the first line does not have is a mistake, which all ranks hear of at their next
        step; but a validation's comes when the first is due.
        """
        if self._metric is None:
            return
        if self._metric in values:
            value = float(values[self._metric])
            self._value = value if math.isfinite(value) else None
            self._step = step
            self._is_known = True
        elif not self._is_known and not self._is_validated:
            self._error = ConfigError(
                f"run.best_metric is {self._metric!r}, but this run logs no such number; there is "
                f"{', '.join(sorted(values))}"
            )

    def _value_at(self, step: int) -> float | None:
        """The value that a checkpoint of a step is judged by.

        A loss of a few steps ago will do; a validation says something of the weights it saw alone.
        """
        return None if self._is_validated and self._step != step else self._value

    def _write(self, step: int, state: dict[str, Any], model: Tensors, optimizer: Tensors) -> None:
        try:
            self._prepare()
            state = bind(state, (MODEL, OPTIMIZER))
            binding = binding_of(stated_at(step, state))
            self._store.save(
                step, state, lambda folder: write_tensors(folder, model, optimizer, binding)
            )
            self._publish(step)
        except OSError as error:
            raise CheckpointError(
                f"the run folder could not be written while step {step} was saved: "
                f"{error.strerror or error}; make room or mend the disk and start the run again"
            ) from error

    def _try(self, write: Callable[[], None]) -> None:
        """In the thread: whatever goes wrong is kept for the ranks to hear of."""
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
