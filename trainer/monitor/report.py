"""Counters of a training run, and their conversion to records."""

import contextlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainer.config.flat import flatten, to_dict
from trainer.engine.callback import Callback, Callbacks, Run
from trainer.engine.distributed import Distributed
from trainer.engine.session import Session
from trainer.engine.step import Step
from trainer.engine.watchdog import LOG
from trainer.monitor.flops import peak_tflops, text_flops
from trainer.monitor.monitor import Monitor, Record


class Report(Callback):
    """Callback that counts every step, and writes a record at each log step.

    Args:
        run: The run.
        task: The task, not yet wrapped.
        finals: Metrics of a validation by which runs are compared.
        callbacks: Called for every record.
    """

    def __init__(
        self, run: Run, task: nn.Module, finals: Sequence[str], callbacks: Callbacks
    ) -> None:
        self._run, self._finals, self._callbacks = run, finals, callbacks
        self._meter = Meter(run, task)
        self._monitor: Monitor | None = None

    def on_start(self, session: Session) -> None:
        """Cut the records back to the session's step, and start counting."""
        self._close()
        run = self._run
        if run.distributed.is_main:
            settings = flatten(to_dict(run.config)) | {"ranks": run.distributed.world_size}
            self._monitor = Monitor(
                run.folder.path, run.steps, session.step, run.say, settings, self._finals
            )
        self._meter.restart()

    def before_step(self, step: Step) -> None:
        """Log the first step, the last step, and every few steps."""
        is_due = step.number % self._run.config.run.log_every == 0
        step.is_logged |= is_due or step.number in (1, self._run.steps)

    def after_step(self, session: Session, step: Step) -> None:
        """Write a record at a log step."""
        self._run.at(LOG)
        self._meter.count(step)
        if not step.is_logged:
            return
        here = self._run.distributed
        speed = self._meter.read()
        values, histograms = step.over_ranks(here, speed)
        memory = highest(here, memory_mib(here.device))
        if self._monitor is None:
            return
        values |= {f"train/{name}": rate for name, rate in step.rates.items()}
        values["train/grad_norm"] = step.result.grad_norm
        if step.result.loss_scale is not None:
            values["train/loss_scale"] = step.result.loss_scale
        values |= memory | step.values
        record = Record(step=step.number, values=values, histograms=histograms)
        self._monitor.write(record)
        for each in self._callbacks:
            each.on_log(record)

    def before_checkpoint(self) -> None:
        """Make the records durable before a checkpoint that follows them."""
        if self._monitor is not None:
            self._monitor.flush()

    def on_end(self, session: Session) -> None:
        """Note the end, and close."""
        if self._monitor is not None:
            self._monitor.end()
        self._close()

    def on_stop(self, error: BaseException) -> None:
        """Close; an error here must not hide the cause of the end."""
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()


class Meter:
    """Counters between log lines: time, waiting, tokens, computation, skipped steps.

    Args:
        run: The run.
        task: The run's task, whose texts cost computation.
    """

    def __init__(self, run: Run, task: nn.Module) -> None:
        here, config = run.distributed, run.config.run
        self._global_batch, self._world_size = config.global_batch, here.world_size
        self._flops = text_flops(task)
        self._peak_tflops = config.peak_tflops or peak_tflops(here.device, config.precision)
        self.restart()

    def restart(self) -> None:
        """Start a new count now."""
        self._since = time.monotonic()
        self._waited_s = 0.0
        self._steps = 0
        self._overflows = 0
        self._texts = np.zeros(3)

    def count(self, step: Step) -> None:
        """Count an optimizer step."""
        self._steps += 1
        self._waited_s += step.waited_s
        self._texts += step.texts
        self._overflows += not step.result.is_applied and step.result.loss_scale is not None

    def read(self) -> dict[str, float]:
        """Return the rates since the last call, and start a new count.

        The mean of the rates over ranks is the run's rate: throughputs are those of all ranks
        together, waiting and computation those of one rank. Time is wall time, checkpoints and
        exports included.
        """
        elapsed = max(1e-9, time.monotonic() - self._since)
        rates = {
            "speed/samples_per_s": self._steps * self._global_batch / elapsed,
            "speed/step_s": elapsed / max(1, self._steps),
            "speed/data_wait_pct": 100.0 * min(1.0, self._waited_s / elapsed),
        }
        if self._overflows:
            rates["train/overflowed_steps"] = float(self._overflows)
        if self._texts[1]:
            rates["speed/tokens_per_s"] = self._world_size * float(self._texts[1]) / elapsed
            if self._flops is not None:
                tflops = self._flops.of(*self._texts) / elapsed / 1e12
                rates["speed/model_tflops"] = tflops
                if self._peak_tflops is not None:
                    rates["speed/mfu_pct"] = 100.0 * tflops / self._peak_tflops
        self.restart()
        return rates


def memory_mib(device: torch.device) -> dict[str, float]:
    """Return this rank's peak memory and current memory in MiB.

    ``memory`` is the device's: torch's allocations on a GPU, otherwise this process. With a GPU,
    the process's own memory is ``process_memory``.
    """
    process = [process_peak_mib(), process_memory_mib()]
    if device.type != "cuda":
        return dict(zip(("speed/memory_mib", "speed/memory_now_mib"), process, strict=True))
    return {
        "speed/memory_mib": torch.cuda.max_memory_allocated(device) / 2**20,
        "speed/memory_now_mib": torch.cuda.memory_allocated(device) / 2**20,
        "speed/process_memory_mib": process[0],
        "speed/process_memory_now_mib": process[1],
    }


def process_peak_mib() -> float:
    """Return the highest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def process_memory_mib() -> float:
    """Return this process's resident memory in MiB, or its peak if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return process_peak_mib()
    return pages * resource.getpagesize() / 2**20


def highest(distributed: Distributed, values: Mapping[str, float]) -> dict[str, float]:
    """Return the maximum of each value over all ranks, rounded: the fullest rank matters."""
    whole: Sequence[int] = distributed.maximum([round(value) for value in values.values()])
    return {name: float(value) for name, value in zip(values, whole, strict=True)}
