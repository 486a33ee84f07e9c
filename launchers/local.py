"""Run steps on this machine one after another; a restart skips the finished steps."""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import BinaryIO, TextIO

from filelock import FileLock, Timeout

from launchers.child import context, run_child
from launchers.estimate import Estimate
from launchers.stamps import Stamp, Stamps, State, proved, refuse_stale
from launchers.steps import Step, choose, digests, in_order
from shards.errors import one_line
from shards.pool import interrupt_blocked
from shards.progress import format_duration
from trainer.errors import EXIT_DONE, EXIT_REQUEUE, TinyNewsRecError, UsageError

TAIL_LINES = 20
SHOWN_CHARS = 160
"""Characters of a step's command that are shown; the log has the whole command."""
LOCK = "lock"
LOCK_S = 1.0
"""How long to wait for the lock: :func:`is_running` too holds the lock for a moment."""


class StepFailed(TinyNewsRecError):
    """A failed step; the message has its name, exit code and last log lines."""

    def __str__(self) -> str:
        """Return the message with the lines of the log."""
        return "\n".join(map(one_line, str(self.args[0]).splitlines()))


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """How to run the steps here."""

    only: str | None = None
    """Run this step alone."""
    until: str | None = None
    """Run this step and the steps that it needs."""
    redo: bool = False
    """Move stale outputs aside and run their steps again, instead of refusing."""
    quiet: bool = False
    """Show only the pipeline's own lines; the output of steps still goes to their logs."""
    module: str = "trainer.cli.main"
    """The module whose ``main`` runs a step's command."""


def run_steps(steps: Sequence[Step], folder: Path, options: LocalOptions | None = None) -> int:
    """Run the unfinished steps.

    Args:
        steps: The steps.
        folder: Folder of stamps and logs (``<run>/pipeline``).
        options: Which steps, and how.

    Returns:
        0 when all chosen steps are done; 75 after a signal, or when a step asks to be started
        again.

    Raises:
        StepFailed: A step failed; the later steps were not run.
        UsageError: A step is unknown, outputs are stale, or another pipeline runs in this folder.
    """
    options = options or LocalOptions()
    ordered = in_order(steps)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_S)
    except Timeout as error:
        raise UsageError(
            f"another pipeline is running in {folder.parent}; wait for it, or name another folder"
        ) from error
    try:
        return _Runner(ordered, folder, options).run()
    finally:
        lock.release()


def is_running(folder: Path) -> bool:
    """Tell whether a pipeline holds the folder right now."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


class _Runner:
    """The loop over steps, with its state."""

    def __init__(self, steps: list[Step], folder: Path, options: LocalOptions) -> None:
        self.steps = choose(steps, only=options.only, until=options.until)
        self.all = steps
        self.folder = folder
        self.options = options
        self.stamps = Stamps(folder)
        self.digests = digests(steps)
        self.estimate = Estimate()
        self.signals = 0
        self.child: ForkServerProcess | None = None
        self.child_ranks = 1
        self.now: Step | None = None

    def run(self) -> int:
        states = {step.name: self._state(step) for step in self.all}
        self._check_stale(states)
        self._check_needs(states)
        todo = [step for step in self.steps if states[step.name] is not State.DONE]
        for step in self.all:
            stamp = self.stamps.read(step)
            if states[step.name] is State.DONE and stamp is not None and stamp.seconds:
                self.estimate.done(step, stamp.seconds)
        done = len(self.steps) - len(todo)
        if done:
            _say(f"{done} of {len(self.steps)} steps are done already")
        start = time.monotonic()
        with self._signals():
            for place, step in enumerate(todo):
                if self.signals:
                    return self._stopped(f"before {step.name}")
                number = f"[{done + place + 1}/{len(self.steps)}]"
                gone = format_duration(time.monotonic() - start)
                _say(f"{number} {step.name}: {gone} elapsed, {self.estimate.left(todo[place:])}")
                if self._run_step(step) != EXIT_DONE:
                    return self._stopped(f"in {step.name}")
        _say(f"all {len(self.steps)} steps done in {format_duration(time.monotonic() - start)}")
        return EXIT_DONE

    def _state(self, step: Step) -> State:
        return self.stamps.state(step, self.digests[step.name])

    def _check_stale(self, states: Mapping[str, State]) -> None:
        stale = [step for step in self.steps if states[step.name] is State.STALE]
        if not self.options.redo:
            refuse_stale(stale, "--redo moves their outputs aside and runs the steps again")
        for step in stale:
            assert step.output is not None
            _say(f"{step.name}: its former output is now {_move_aside(Path(step.output))}")

    def _check_needs(self, states: Mapping[str, State]) -> None:
        if self.options.only is None:
            return
        missing = [n for n in self.steps[0].needs if states[n] is not State.DONE]
        if missing:
            raise UsageError(
                f"{self.steps[0].name} needs {', '.join(missing)}, not done yet; --until "
                f"{self.steps[0].name} runs them too"
            )

    def _run_step(self, step: Step) -> int:
        self.now = step
        digest, begin = self.digests[step.name], time.time()
        stamp = Stamp(step.name, digest, State.RUNNING, shlex.join(step.command), begin)
        self.stamps.write(step, stamp)
        code, left = EXIT_DONE, step.tasks()
        with self.stamps.log(step).open("ab") as log:
            attempt = log.tell()  # the log also holds former attempts
            while left and code == EXIT_DONE and not self.signals:
                code = self._run_task(step, left.pop(0), log)
        finished = code == EXIT_DONE and not left
        if finished:
            state = State.DONE if proved(step) else State.FAILED
        else:
            state = State.STOPPED if code == EXIT_REQUEUE or self.signals else State.FAILED
        end = time.time()
        done = Stamp(step.name, digest, state, stamp.command, begin, end, code)
        self.stamps.write(step, done)
        if state is State.FAILED:
            raise StepFailed(self._failure(step, code, attempt))
        if state is State.DONE:
            self.estimate.done(step, end - begin)
            _say(f"  done in {format_duration(end - begin)}")
        return EXIT_DONE if state is State.DONE else EXIT_REQUEUE

    def _run_task(self, step: Step, command: tuple[str, ...], log: BinaryIO) -> int:
        line = f"$ {shlex.join(command)}"
        log.write(f"---- {time.strftime('%Y-%m-%d %H:%M:%S')}\n{line}\n".encode())
        log.flush()
        if not self.options.quiet:
            _say(f"  {line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + '…'}")
        here = context()
        reader, writer = here.Pipe(duplex=False)
        processes = step.resources.processes
        self.child_ranks = processes
        target = (command[1:], processes, writer, self.options.module, dict(os.environ))
        child = here.Process(target=run_child, args=target)
        with interrupt_blocked():  # the server imports for seconds before it forks the child
            child.start()
        self.child = child
        writer.close()
        if self.signals:  # a signal arrived while the child was being made
            self._pass_on()
        echo = None if self.options.quiet else sys.stdout
        try:
            _copy_output(reader.fileno(), child.sentinel, log, echo)
            child.join()
        finally:
            self.child = None
            reader.close()
        code = child.exitcode
        return 1 if code is None else code

    def _failure(self, step: Step, code: int, attempt: int) -> str:
        log = self.stamps.log(step)
        why = f"ended with exit code {code}"
        if code < 0:
            why = f"was killed by signal {signal.Signals(-code).name}"
        elif code == EXIT_DONE:
            why = f"ended with exit code 0, but left no {' and '.join(step.proof)}"
        with log.open("rb") as file:
            file.seek(attempt)
            lines = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"  | {line}" for line in lines)
        return (
            f"step {step.name} {why}; the steps after it were not run. The end of {log}:\n{tail}\n"
            "Fix the cause and run the same command again: finished steps are skipped."
        )

    def _stopped(self, where: str) -> int:
        _say(f"stopped {where}; run the same command again to continue")
        return EXIT_REQUEUE

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Pass the first signal to the step, which checkpoints; kill it at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        former = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signals += 1
        name = self.now.name if self.now is not None else "the pipeline"
        if self.signals == 1:
            _say(f"\n{signal.Signals(number).name}: waiting for {name} to stop; again to kill it")
        self._pass_on()

    def _pass_on(self) -> None:
        child = self.child
        if child is None or child.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.signals > 1:
                os.killpg(child.pid, signal.SIGKILL)  # the child leads its own session
            else:
                # torchrun kills its ranks 30 s after TERM; torchrun passes USR2 on without a limit.
                os.kill(child.pid, signal.SIGUSR2 if self.child_ranks > 1 else signal.SIGTERM)


def _copy_output(source: int, ended: int, log: BinaryIO, echo: TextIO | None) -> None:
    """Copy a child's output to log and terminal until the child has ended.

    Args:
        source: File descriptor to read.
        ended: File descriptor that is readable once the child has ended: a process that the child
            left behind may keep ``source`` open.
        log: File that receives every byte.
        echo: Second file that receives every byte, or None.
    """
    os.set_blocking(source, False)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a block may end inside a letter
    over = False
    while True:
        if not over:
            over = ended in wait([source, ended])
        try:
            block = os.read(source, 65536)
        except BlockingIOError:
            if over:
                return
            continue
        if not block:
            return
        log.write(block)
        log.flush()
        if echo is not None:
            echo.write(decoder.decode(block))
            echo.flush()


def _move_aside(path: Path) -> Path:
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return path.rename(target)


def _say(text: str) -> None:
    print(text, flush=True)
