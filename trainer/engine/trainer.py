"""The training loop: fetch, forward, backward, agree on finite, step, validate, log, save.

Reading order of the engine: this file, ``session`` (what is trained), ``backends`` (torch and
DeepSpeed), ``step_module`` (precision, random numbers), ``not_finite`` (steps that are left out),
``validation`` (the best step, early stopping), ``saving`` (checkpoints in the background),
``distributed`` (start-up), ``opening`` (where a run goes on), ``ending`` (what it exports) and
``trainer.checkpoint``.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.stream import Prefetch
from trainer.checkpoint.retention import retention_of
from trainer.checkpoint.store import Checkpoint, CheckpointStore
from trainer.config.flat import flatten, to_dict
from trainer.config.schema import TrainConfig, ValidationConfig
from trainer.engine.backends import StepResult
from trainer.engine.batches import StepBatch, step_batches
from trainer.engine.copies import copy_steps
from trainer.engine.distributed import Distributed
from trainer.engine.ending import finished_line, take_chosen, write_finished, write_stopped
from trainer.engine.not_finite import NotFinite, Verdict, spread
from trainer.engine.opening import Opened, open_run
from trainer.engine.profiling import StepProfiler
from trainer.engine.run_folder import RunFolder
from trainer.engine.saving import Saver
from trainer.engine.schedule import total_steps
from trainer.engine.session import Session
from trainer.engine.signals import StopRequest, stop_on_signals
from trainer.engine.step_module import check_all_take_part, seed_of
from trainer.engine.step_report import Meter, StepReport, highest, memory_mib
from trainer.engine.validation import Validation, Validator
from trainer.engine.watchdog import (
    AGREE,
    CHECKPOINT,
    EXPORT,
    FORWARD,
    LOG,
    STEP,
    VALIDATE,
    Watchdog,
    watched_start,
)
from trainer.errors import CheckpointError, StopForRequeue, TrainingError
from trainer.monitor.flops import peak_tflops, text_flops
from trainer.monitor.monitor import Monitor, Record
from trainer.tasks.base import MicroBatch, TaskData

Export = Callable[[nn.Module, Path, dict[str, Any]], object]
"""``export(model, folder, info)``: publish the model, with its whole fp32 weights, as a folder."""


class Trainer:
    """Trains one task in one run folder, from its newest checkpoint if it has one.

    Args:
        config: The run.
        task: Its forward takes a micro-batch and returns ``loss``, ``losses``, ``report`` and
            ``num_samples``; its ``model`` is what is exported. Every trainable parameter takes part
            in every forward pass.
        data: Its order and how micro-batches are made.
        export: Called on rank 0 for teacher copies and at the end.
        distributed: This process among the others, from :func:`trainer.engine.distributed.start`,
            which was called before the task was built.
        validation: What the task's ``model`` is measured on while it trains; None for nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: nn.Module,
        data: TaskData,
        export: Export,
        distributed: Distributed,
        validation: Validation | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.data = data
        self.export = export
        self.distributed = distributed
        self.steps = total_steps(config.run, data.order.num_units)
        self.copy_steps = copy_steps(config.run.copies, self.steps)
        self.folder = RunFolder(config.run.dir)
        self._store = CheckpointStore(self.folder.checkpoints, retention_of(config), self._warn)
        self._saver = Saver(
            config,
            self._store,
            distributed,
            prepare=self._flush,
            publish=lambda step: self.folder.write_state("running", step, self.steps),
        )
        self._not_finite = NotFinite(config.run, data.order, self._warn)
        self._meter = Meter(
            text_flops(task),
            config.run.peak_tflops or peak_tflops(distributed.device, config.run.precision),
            distributed.world_size,
        )
        self._profiler = StepProfiler(config.run.profile_steps, self.folder.path, distributed.rank)
        self._watchdog = Watchdog(
            distributed.rank,
            distributed.world_size,
            config.run.hang_timeout_s,
            self.folder.log,
            self._note_hang,
        )
        self._validator = Validator(
            config.validates or ValidationConfig(),
            validation,
            distributed,
            self.steps,
            tick=lambda: self._watchdog.at(VALIDATE),
            say=self.folder.say,
        )
        self._fingerprint = data.fingerprint + self._validator.fingerprint
        self._monitor: Monitor | None = None

    def fit(self, stop: StopRequest | None = None) -> Path:
        """Train to the last step, export, and return the run folder.

        Args:
            stop: Tells whether the process was asked to stop; None to catch the signals here.

        Raises:
            StopForRequeue: A signal asked to stop; there is a checkpoint to go on from.
            TrainingError: A loss or gradient is not finite, or a parameter takes no part.
            CheckpointError: Checkpoints are all damaged or belong to another run, or one cannot be
                written.
        """
        try:
            with contextlib.nullcontext(stop) if stop else stop_on_signals() as request:
                request.is_training = True
                with watched_start(self.distributed.rank, self.config.run.hang_timeout_s):
                    opened = self.distributed.from_main(self._open)
                if not opened.is_finished:
                    with self._watchdog, self._profiler:
                        session = self._start(opened.checkpoint)
                        self._train(session, request)
                        self._finish(session)
        except BaseException as error:
            self._note_stop(error)
            raise
        finally:
            self._close_monitor()
            self.folder.close()
        return self.folder.path

    def _start(self, checkpoint: Checkpoint | None) -> Session:
        """Make the task ready to train from where the run is."""
        if checkpoint is not None:
            try:
                self._saver.resume(checkpoint.state)
                self._not_finite.resume(checkpoint.state)
                self._validator.resume(checkpoint.state)
            except (TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{checkpoint.folder} cannot be read: its state.json was edited, or is of "
                    f"another version ({error})"
                ) from error
        session = Session(self.config, self.task, self.distributed, checkpoint, self.steps)
        if checkpoint is None and self.config.run.not_finite == "reload":
            self._save(session)  # Somewhere to go back to, from the first step on.
        return session

    def _train(self, session: Session, stop: StopRequest) -> None:
        """The loop, as often as a step that is not finite sends it back to a checkpoint."""
        (signum,) = self.distributed.maximum([stop.signum])
        if signum:
            raise StopForRequeue(
                f"{signal.Signals(signum).name}: stopped at step {session.step} of {self.steps}, "
                "before the first step of this start; the same command goes on from there"
            )
        while self._steps(session, stop) is Verdict.GO_BACK:
            self._watchdog.at(CHECKPOINT)
            self._saver.join()
            checkpoint = self.distributed.from_main(self._store.find)
            assert checkpoint is not None, "a run that may go back saves before its first step"
            # The record of what was not finite stays: it says what to leave out this time.
            session.go_back(checkpoint)
            self._saver.resume(checkpoint.state)
            self._validator.resume(checkpoint.state)
            self._close_monitor()

    def _steps(self, session: Session, stop: StopRequest) -> Verdict:
        """From where the session is to the last step, or to one that sends it back."""
        if self.distributed.is_main:
            settings = flatten(to_dict(self.config)) | {"ranks": self.distributed.world_size}
            self._monitor = Monitor(
                self.folder.path,
                self.steps,
                session.step,
                self.folder.say,
                settings,
                self._validator.finals,
            )
        self._meter.restart()
        with self._batches(session) as batches:
            for step in range(session.step + 1, self.steps + 1):
                if self._validator.is_over:
                    break
                self._begin(step)
                micro_batches, position = self._fetch(batches)
                rates = session.learning_rate.set(step)
                report = self._forward_backward(session, step, micro_batches)
                signum, bad_rank = self._agree(report, stop)
                self._watchdog.at(STEP)
                result = session.backend.step()
                if self._not_finite.judge(step, bad_rank, result, position) is Verdict.GO_BACK:
                    return Verdict.GO_BACK
                session.step, session.position = step, position
                validated = self._validator.run(step, session.full_model)
                self._log(step, report, rates, result, validated)
                if step in self.copy_steps:
                    self._export(session, self.folder.copy(step))
                if signum or self._is_saved(step):
                    self._save(session)
                if signum and step < self.steps and not self._validator.is_over:
                    self._saver.join()
                    raise StopForRequeue(
                        f"{signal.Signals(signum).name}: stopped after step {step} of "
                        f"{self.steps}; its checkpoint is {self._store.path(step)}. The same "
                        "command goes on from it"
                    )
        self._watchdog.at(CHECKPOINT)
        self._saver.join()
        return Verdict.GO_ON

    def _save(self, session: Session) -> None:
        self._watchdog.at(CHECKPOINT)
        state = session.state(self._fingerprint) | self._validator.state()
        self._saver.save(session, state | {"not_finite": self._not_finite.record()})

    def _batches(self, session: Session) -> Prefetch[StepBatch]:
        return step_batches(
            self.config,
            self.data,
            self.distributed,
            session.position,
            self._not_finite.leaves_out,
        )

    def _begin(self, step: int) -> None:
        self._watchdog.begin(step)
        for line in self._profiler.begin(step):
            if self.distributed.is_main:
                self.folder.say(line)

    def _fetch(self, batches: Iterator[StepBatch]) -> StepBatch:
        started = time.monotonic()
        batch = next(batches)
        self._meter.waited(time.monotonic() - started)
        return batch

    def _forward_backward(
        self, session: Session, step: int, micro_batches: list[MicroBatch]
    ) -> StepReport:
        """All micro-batches of a step; afterwards every rank has the global batch's gradient."""
        self._watchdog.at(FORWARD)
        report = StepReport(is_logged=self._is_logged(step))
        backend, run = session.backend, self.config.run
        for micro, made in enumerate(micro_batches):
            self._meter.count_texts(made.counts)
            batch = made.batch.to(self.distributed.device)
            is_last = micro == len(micro_batches) - 1
            torch.manual_seed(seed_of(run.seed, step, self.distributed.rank, micro))
            with backend.micro_step(is_last=is_last):
                outputs = backend.module(batch)
                if not session.is_checked:
                    check_all_take_part(outputs["loss"], session.step_module)
                    session.is_checked = True
                backend.backward(spread(outputs["loss"]), is_last=is_last)
            report.add(outputs, made.counts)
        return report

    def _agree(self, report: StepReport, stop: StopRequest) -> tuple[int, int | None]:
        """One small all-reduce: has any rank a signal to stop, a loss that is not finite, a save
        that failed?

        Returns:
            The signal, 0 for none, and the highest rank whose loss is not finite, None for none.

        Raises:
            CheckpointError: A checkpoint could not be written in the background.
            ConfigError: ``run.best_metric`` is not among what is logged.
        """
        self._watchdog.at(AGREE)
        bad_rank = 0 if math.isfinite(report.loss) else self.distributed.rank + 1
        flags = [stop.signum, bad_rank, int(self._saver.has_failed)]
        signum, bad_rank, has_failed = self.distributed.maximum(flags)
        if has_failed:
            self._saver.raise_error()
        return signum, bad_rank - 1 if bad_rank else None

    def _is_logged(self, step: int) -> bool:
        is_special = step in (1, self.steps) or self._validator.is_due(step)
        return is_special or step % self.config.run.log_every == 0

    def _is_saved(self, step: int) -> bool:
        is_due = step == self.steps or step % self.config.run.checkpoint_every == 0
        return is_due or self._validator.wants_checkpoint

    def _log(
        self,
        step: int,
        report: StepReport,
        rates: dict[str, float],
        result: StepResult,
        validated: dict[str, float],
    ) -> None:
        """Count the step; at a log step, reduce what was counted over ranks and write it down."""
        self._watchdog.at(LOG)
        self._meter.count_step(result)
        if not self._is_logged(step):
            return
        speed = self._meter.read(self.config.run.global_batch)
        values, histograms = report.over_ranks(self.distributed, speed)
        memory = highest(self.distributed, memory_mib(self.distributed.device))
        if self._monitor is None:
            return
        values |= {f"train/{name}": rate for name, rate in rates.items()}
        values["train/grad_norm"] = result.grad_norm
        if result.loss_scale is not None:
            values["train/loss_scale"] = result.loss_scale
        if self._not_finite.faults:
            values["train/skipped_steps"] = float(len(self._not_finite.faults))
        values |= memory | validated
        self._monitor.write(Record(step=step, values=values, histograms=histograms))
        self._saver.note(step, values)

    def _open(self) -> Opened:
        return open_run(
            self.config,
            self.folder,
            self._store,
            self.distributed,
            self.data,
            fingerprint=self._fingerprint,
            notes=self._validator.notes,
            steps=self.steps,
            copy_steps=self.copy_steps,
        )

    def _close_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()

    def _flush(self) -> None:
        """Metrics are on the disk before a checkpoint that follows them."""
        if self._monitor is not None:
            self._monitor.flush()

    def _warn(self, line: str) -> None:
        if self.distributed.is_main:
            self.folder.say(f"WARNING: {line}")

    def _export(self, session: Session, folder: Path, said: dict[str, Any] | None = None) -> None:
        self._watchdog.at(EXPORT)
        model = session.full_model()
        info = session.info(self.folder.path, self.steps) | (said or {})
        self.distributed.from_main(lambda: self.export(model, folder, info) and None)

    def _finish(self, session: Session) -> None:
        self._watchdog.at(EXPORT)
        validator = self._validator
        if validator.is_over and self.distributed.is_main:
            self.folder.say(
                f"ended after step {session.step} of {self.steps}: {validator.ending()}"
            )
        chosen = take_chosen(self.config, session, self._store, validator, self.distributed)
        self._export(session, self.folder.export, chosen)
        self.distributed.from_main(
            lambda: write_finished(self.folder, validator, session.step, self.steps)
        )
        if self._monitor is not None:
            self._monitor.end()
        if self.distributed.is_main:
            self.folder.say(finished_line(self.folder, chosen, session.step))

    def _note_stop(self, error: BaseException) -> None:
        """Leave the reason of an early end in ``state.json``, with the last checkpoint's step."""
        if not self.distributed.is_main:
            return
        failed = self._saver.close()
        # A disk that is full may be the reason itself; it must not hide it.
        with contextlib.suppress(OSError):
            if failed is not None and failed is not error:
                self._warn(str(failed))
            self._close_monitor()
        write_stopped(self.folder, error, self.steps)

    def _note_hang(self, reason: str) -> None:
        """Called by the watchdog's thread, before it ends the process."""
        self._note_stop(TrainingError(reason))
