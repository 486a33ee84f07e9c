"""The training loop: fetch, forward, backward, agree, step, and the hooks around them.

Reading order of the engine: this file, ``callback`` (the hooks), ``parts`` (the callbacks of every
run, in order), ``session`` (what is trained), ``backends`` (torch and DeepSpeed), ``step_module``
(precision, random numbers), then the callbacks ``not_finite`` (skipped steps), ``validation`` (the
best step, early stopping), ``saving`` (checkpoints in the background), ``ending`` (the export),
``trainer.monitor.report`` (the log); then ``distributed`` (start-up), ``opening`` (where a run
continues) and ``trainer.checkpoint``.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from shards.order import BatchRows, Position
from shards.stream import Prefetch, Stream, prefetch
from trainer.checkpoint.store import Checkpoint
from trainer.config.schema import TrainConfig
from trainer.engine.callback import Callback
from trainer.engine.distributed import Distributed
from trainer.engine.ending import Export
from trainer.engine.not_finite import spread
from trainer.engine.opening import Opened, open_run
from trainer.engine.parts import build_parts
from trainer.engine.session import Session
from trainer.engine.signals import StopRequest, stop_on_signals
from trainer.engine.step import Step
from trainer.engine.step_module import check_all_take_part, seed_of
from trainer.engine.validation import Validation
from trainer.engine.watchdog import AGREE, CHECKPOINT, FORWARD, STEP, watched_start
from trainer.errors import StopForRequeue
from trainer.tasks.base import MicroBatch, TaskData

StepBatch = tuple[list[MicroBatch], Position]


class Trainer:
    """Trainer of one task in one run folder, from its newest checkpoint if any.

    Args:
        config: The run.
        task: Module whose forward pass takes a micro-batch and returns ``loss``, ``losses``,
            ``report`` and ``num_samples``; its ``model`` is exported. Every trainable parameter
            takes part in every forward pass.
        data: Order of the data, and how micro-batches are made.
        export: Called on rank 0 for teacher copies and at the end.
        distributed: This process among the others, from :func:`trainer.engine.distributed.start`,
            which was called before the task was built.
        validation: Evaluator of the task's ``model`` during training; None for no validation.
        callbacks: Further callbacks, the same on every rank.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: nn.Module,
        data: TaskData,
        export: Export,
        distributed: Distributed,
        validation: Validation | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config = config
        self.task = task
        self.data = data
        self.distributed = distributed
        self.parts = build_parts(config, task, data, export, distributed, validation, callbacks)
        self.callbacks = self.parts.callbacks
        self.run = self.parts.run
        self._fingerprint = data.fingerprint + self.parts.validator.fingerprint

    def fit(self, stop: StopRequest | None = None) -> Path:
        """Train to the last step, export, and return the run folder.

        Args:
            stop: Stop request of the process; None catches the signals here.

        Raises:
            StopForRequeue: A signal asked to stop; a checkpoint to continue from exists.
            TrainingError: A loss or gradient is not finite, or a parameter takes no part.
            CheckpointError: All checkpoints are damaged or belong to another run, or one cannot be
                written.
        """
        try:
            with contextlib.nullcontext(stop) if stop else stop_on_signals() as request:
                request.is_training = True
                with watched_start(self.distributed.rank, self.config.run.hang_timeout_s):
                    opened = self.distributed.from_main(self._open)
                if not opened.is_finished:
                    with contextlib.ExitStack() as entered:
                        for each in self.callbacks:
                            entered.enter_context(each)
                        self._train(opened.checkpoint, request)
        except BaseException as error:
            self.callbacks.stop(error)
            raise
        finally:
            self.run.folder.close()
        return self.run.folder.path

    def _open(self) -> Opened:
        notes, copied = self.parts.validator.notes, self.parts.copy_steps
        return open_run(
            self.run, self.data, fingerprint=self._fingerprint, notes=notes, copy_steps=copied
        )

    def _train(self, checkpoint: Checkpoint | None, stop: StopRequest) -> None:
        """Train from where the run is; after a non-finite step, roll back and repeat."""
        if checkpoint is not None:
            self.callbacks.resume(checkpoint)
        session = Session(self.config, self.task, self.distributed, checkpoint, self.run.steps)
        if checkpoint is None and self.config.run.not_finite == "reload":
            self._save(session)  # a checkpoint to roll back to from the first step on
        (signum,) = self.distributed.maximum([stop.signum])
        if signum:
            raise StopForRequeue(
                f"{signal.Signals(signum).name}: stopped at step {session.step} of "
                f"{self.run.steps}, before the first step of this start; run the same command to "
                "continue"
            )
        while not self._take_steps(session, stop):
            self._go_back(session)
        for each in self.callbacks:
            each.on_end(session)

    def _take_steps(self, session: Session, stop: StopRequest) -> bool:
        """Take the remaining steps; return False if a step causes a rollback."""
        parts, steps = self.parts, self.run.steps
        for each in self.callbacks:
            each.on_start(session)
        with self._batches(session.position) as batches:
            for number in range(session.step + 1, steps + 1):
                if parts.validator.is_over:
                    break
                step = Step(number)
                for each in self.callbacks:
                    each.before_step(step)
                micro_batches = self._fetch(batches, step)
                step.rates = session.learning_rate.set(number)
                self._forward_backward(session, step, micro_batches)
                signum = self._agree(step, stop)
                self.run.at(STEP)
                step.result = session.backend.step()
                if parts.not_finite.goes_back(step):
                    return False
                session.step, session.position = number, step.position
                for each in self.callbacks:
                    each.after_step(session, step)
                if signum or step.is_saved:
                    self._save(session)
                if signum and number < steps and not parts.validator.is_over:
                    parts.saver.join()
                    raise StopForRequeue(
                        f"{signal.Signals(signum).name}: stopped after step {number} of {steps}; "
                        f"its checkpoint is {self.run.store.path(number)}. Run the same command "
                        "to continue"
                    )
        self.run.at(CHECKPOINT)
        parts.saver.join()
        return True

    def _batches(self, position: Position | None) -> Prefetch[StepBatch]:
        """Yield the micro-batches of every step, collated ahead by ``data.workers`` threads."""
        run, here = self.config.run, self.distributed

        def collate(rows: BatchRows) -> StepBatch:
            found = [self.data.collate(part) for part in rows.split(run.micro_batch)]
            if here.device.type == "cuda":
                found = [dataclasses.replace(one, batch=one.batch.pin_memory()) for one in found]
            return found, rows.position

        order, leaves_out = self.data.order, self.parts.not_finite.leaves_out
        stream = Stream(order, run.global_batch, here.rank, here.world_size, position)
        kept = (rows for rows in stream if not leaves_out(rows.position))
        return prefetch(kept, collate, workers=self.config.data.workers)

    def _fetch(self, batches: Iterator[StepBatch], step: Step) -> list[MicroBatch]:
        started = time.monotonic()
        micro_batches, step.position = next(batches)
        step.waited_s = time.monotonic() - started
        return micro_batches

    def _forward_backward(
        self, session: Session, step: Step, micro_batches: list[MicroBatch]
    ) -> None:
        """Run all micro-batches of a step; afterwards every rank has the global gradient."""
        self.run.at(FORWARD)
        backend, run = session.backend, self.config.run
        for micro, made in enumerate(micro_batches):
            batch = made.batch.to(self.distributed.device)
            is_last = micro == len(micro_batches) - 1
            torch.manual_seed(seed_of(run.seed, step.number, self.distributed.rank, micro))
            with backend.micro_step(is_last=is_last):
                outputs = backend.module(batch)
                if not session.is_checked:
                    check_all_take_part(outputs["loss"], session.step_module)
                    session.is_checked = True
                backend.backward(spread(outputs["loss"]), is_last=is_last)
            step.add(outputs, made.counts)

    def _agree(self, step: Step, stop: StopRequest) -> int:
        """Share a stop signal and the callbacks' flags in one small all-reduce.

        Returns:
            The signal that a rank received; 0 for none.
        """
        self.run.at(AGREE)
        flags = [each.flag(step) for each in self.callbacks]
        given = [flag for flag in flags if flag is not None]
        signum, *highest = self.distributed.maximum([stop.signum, *given])
        for each, flag in zip(self.callbacks, flags, strict=True):
            if flag is not None:
                each.on_flag(highest.pop(0))
        return signum

    def _save(self, session: Session) -> None:
        self.run.at(CHECKPOINT)
        state = self.callbacks.state(session.state(self._fingerprint))
        self.parts.saver.save(session, state)

    def _go_back(self, session: Session) -> None:
        """Roll back to the newest checkpoint, without a restart."""
        self.run.at(CHECKPOINT)
        self.parts.saver.join()
        checkpoint = self.distributed.from_main(self.run.store.find)
        assert checkpoint is not None, "a run that may roll back saves before its first step"
        session.go_back(checkpoint)
        self.callbacks.resume(checkpoint)
