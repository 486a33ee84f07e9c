"""Watchdog: a rank that hangs ends the job, with the stacks of every rank in the log.

Every rank notes what it is doing (:meth:`Watchdog.at`, a few assignments). A thread checks whether
the notes still change. After ``run.hang_timeout_s`` without a change, the thread

1. writes the stacks of all threads to standard error and to ``log/stacks-rank<N>.txt``;
2. names the ranks that are silent or behind: a separate thread of every rank sends heartbeats to
   the rendezvous store;
3. raises the alarm in that store, so that the other ranks write their stacks too, and wakes silent
   ranks of this machine for that;
4. ends the process with exit code 1; the launcher ends the other ranks.

Phases that may take long (start-up, the first step with its compilation, validations, checkpoints,
exports) have ``LONG`` times the limit. The time between a change and the end of the process is at
most the limit plus ``SLACK_S``; if a rank can no longer be woken, the launcher needs additional
time to kill it (torchrun: 30 s after asking it to end). Collectives wait longer than that
(:func:`collective_timeout_s`), so the watchdog always reports first.

A Python thread cannot run while C code holds the interpreter's lock. For this case there is
``faulthandler``'s timer, which needs no lock: after twice the longest of these times since the
watchdog last ran, the timer writes the stacks and ends the process. If a whole job is suspended for
longer than that, the timer ends it when it continues; a shorter suspension does not count as a
hang.
"""

import contextlib
import faulthandler
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from shards.errors import first_line
from trainer.engine.callback import Callback
from trainer.engine.heartbeats import DUMP_SIGNAL, Heartbeats, describe, silent, wake
from trainer.errors import EXIT_FAILED

if TYPE_CHECKING:
    from trainer.engine.step import Step

START = "start"
FETCH = "data wait"
FORWARD = "forward and backward"
AGREE = "agreement of ranks"
STEP = "optimizer step"
VALIDATE = "validation"
LOG = "log"
EXPORT = "export"
CHECKPOINT = "checkpoint"
PHASES = (START, FETCH, FORWARD, AGREE, STEP, VALIDATE, LOG, EXPORT, CHECKPOINT)
"""Phases of a step, in order."""

LONG_PHASES = (START, VALIDATE, EXPORT, CHECKPOINT)
LONG = 4.0
"""Factor of the limit for long phases and the first step."""

COMPILE_S = 600.0
"""Minimum limit in seconds for compiling a library at the start."""

SLACK_S = 30.0
"""Largest delay in seconds between the limit and the end of the process."""


def collective_timeout_s(limit_s: float) -> float:
    """Return the timeout of collectives in seconds: longer than any phase may take."""
    return LONG * limit_s + 2 * SLACK_S


class Watchdog(Callback):
    """Watchdog of this process; see the module.

    Args:
        rank: Rank of this process.
        world_size: Number of ranks.
        limit_s: ``run.hang_timeout_s``.
        log: Existing folder for ``stacks-rank<N>.txt``.
        note: Called with the reason before the end, to record it in the run folder.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        limit_s: float,
        log: Path,
        note: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._rank, self._world_size, self._limit_s = rank, world_size, limit_s
        self._path, self._note = log / f"stacks-rank{rank}.txt", note
        self._tick_s = min(4.0, max(0.05, limit_s / 20))
        self._first = self._step = 0
        self._over = threading.Event()
        self._fires = threading.Lock()
        self._beats: Heartbeats | None = None
        self._file: IO[str] | None = None
        self.at(START)

    def before_step(self, step: "Step") -> None:
        """Note that a step begins."""
        self._first = self._first or step.number
        self._step = step.number
        self.at(FETCH)

    def at(self, phase: str) -> None:
        """Note what this rank does from now on."""
        if self._fires.locked():
            # A stopped rank was woken to write its stacks: it must not continue training before its
            # end.
            time.sleep(SLACK_S)
        is_long = self._step == self._first or phase in LONG_PHASES
        # A single assignment of one tuple, so that the watching thread never sees half of it.
        self._mark = (
            self._step,
            phase,
            time.monotonic(),
            self._limit_s * LONG if is_long else self._limit_s,
        )

    def __enter__(self) -> "Watchdog":
        """Start watching."""
        self.at(START)
        self._file = self._path.open("a", encoding="utf-8")
        if DUMP_SIGNAL:
            faulthandler.register(DUMP_SIGNAL, self._file, all_threads=True)
        names = ["watchdog"] if self._world_size == 1 else ["watchdog", "heartbeat"]
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in zip(names, (self._watch, self._beat), strict=False)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching, and remove an empty file of stacks."""
        self._over.set()
        # The beating thread may wait for a lost store: it is left behind then.
        for thread in self._threads:
            thread.join(timeout=1.0)
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            if DUMP_SIGNAL:
                faulthandler.unregister(DUMP_SIGNAL)
            self._file.close()
            with contextlib.suppress(OSError):
                if not self._path.stat().st_size:
                    self._path.unlink()

    def _watch(self) -> None:
        """Watch the training thread; body of the watching thread."""
        last = time.monotonic()
        slept_s = 0.0
        mark = self._mark
        while True:
            # Needs no interpreter lock, so it works if this thread can no longer run.
            faulthandler.dump_traceback_later(
                2 * LONG * self._limit_s, exit=True, file=self._file or 2
            )
            if self._over.wait(self._tick_s):
                return
            now = time.monotonic()
            if self._mark is not mark:
                mark, slept_s = self._mark, 0.0
            # This process itself was suspended, so the time does not count for the training thread.
            slept_s += max(0.0, now - last - 4 * self._tick_s)
            last = now
            step, phase, since, allowed_s = mark
            if now - since - slept_s > allowed_s:
                self._fire(
                    f"rank {self._rank} made no progress for {now - since:.1f} s in step {step}, "
                    f"{phase} (run.hang_timeout_s {self._limit_s:g}, here {allowed_s:g} s)"
                )

    def _beat(self) -> None:
        """Send heartbeats; body of the beating thread."""
        try:
            self._beats = Heartbeats(self._rank, self._world_size)
            while True:
                step, phase, since, _ = self._mark
                self._beats.beat(step, phase, time.monotonic() - since)
                reason = self._beats.alarm()
                if reason is not None and not self._fires.locked():
                    self._fire(reason, is_first=False)
                if self._over.wait(self._tick_s):
                    return
        except (RuntimeError, OSError) as error:
            if not self._over.is_set():
                _say(
                    f"tnr: warning: rank {self._rank} lost the store through which ranks watch "
                    f"each other ({first_line(error)}); it still watches itself\n"
                )

    def _fire(self, reason: str, *, is_first: bool = True) -> None:
        """Write the report and end the process; nothing here may wait without a limit."""
        if not self._fires.acquire(blocking=False):
            time.sleep(SLACK_S)  # the other thread does this and ends the process
        faulthandler.dump_traceback_later(SLACK_S, exit=True, file=self._file or 2)
        stacks = f"tnr: hang: {reason}\nStacks of rank {self._rank}:\n{stacks_text()}"
        _say(stacks)
        self._keep(stacks)
        if is_first and self._world_size > 1:
            lines = _within(3 * self._tick_s + 2.0, lambda: self._survey(reason))
            if lines is None:
                lines = ["the rendezvous store, which runs on rank 0, does not answer"]
            told = "".join(f"tnr: hang: {line}\n" for line in lines)
            _say(told)
            self._keep(told)
        _within(2.0, lambda: self._note(f"hang: {reason}"))
        if self._world_size > 1:
            time.sleep(self._tick_s + 1.0)  # gives the other ranks time to write their stacks
        os._exit(EXIT_FAILED)

    def _survey(self, reason: str) -> list[str]:
        beats = self._beats
        if beats is None:
            return ["the state of the ranks could not be read"]
        before = beats.read()
        time.sleep(2.5 * self._tick_s)
        after = beats.read()
        lines = describe(before, after, PHASES)
        beats.raise_alarm(reason)
        for beat in silent(before, after):
            wake(beat)
        return lines

    def _keep(self, text: str) -> None:
        def write() -> None:
            if self._file is not None:
                self._file.write(text)
                self._file.flush()

        _within(2.0, write)


def stacks_text() -> str:
    """Return the stacks of all threads of this process, the main thread first."""
    frames = sys._current_frames()
    out = io.StringIO()
    main = threading.main_thread()
    threads = sorted(threading.enumerate(), key=lambda thread: thread is not main)
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        if frame is not None and thread is not threading.current_thread():
            out.write(f"thread {thread.name}:\n")
            out.writelines(traceback.format_stack(frame))
    return out.getvalue()


@contextlib.contextmanager
def watched_start(rank: int, limit_s: float) -> Iterator[Callable[..., None]]:
    """Watch everything before the first step, such as the rendezvous and the data.

    This includes DeepSpeed, the model and the run folder.

    Args:
        rank: This process.
        limit_s: ``run.hang_timeout_s``; the block may take ``LONG`` times as long.

    Yields:
        A function that notes progress: without an argument, or with True while a library is
        compiled and False afterwards.
    """
    limits_s = {False: LONG * limit_s, True: max(LONG * limit_s, COMPILE_S)}
    mark = (time.monotonic(), False)
    over = threading.Event()

    def note(is_compiling: bool = False) -> None:
        nonlocal mark
        mark = (time.monotonic(), is_compiling)

    def watch() -> None:
        while True:
            # Needs no interpreter lock, so it works if this thread can no longer run.
            faulthandler.dump_traceback_later(
                2 * limits_s[True], exit=True, file=sys.__stderr__ or 2
            )
            if over.wait(min(1.0, limits_s[False] / 20)):
                return
            since, is_compiling = mark
            allowed_s, took_s = limits_s[is_compiling], time.monotonic() - since
            if took_s > allowed_s:
                what = f"{START}, compiling," if is_compiling else START
                _say(
                    f"tnr: hang: rank {rank} made no progress for {took_s:.1f} s in {what} "
                    f"(run.hang_timeout_s {limit_s:g}, here {allowed_s:g} s)\n"
                    f"Stacks of rank {rank}:\n{stacks_text()}"
                )
                os._exit(EXIT_FAILED)

    thread = threading.Thread(target=watch, name="watchdog of the start", daemon=True)
    thread.start()
    try:
        yield note
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """End the process, with its stacks on standard error, if the block takes too long."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _say(text: str) -> None:
    """Write to standard error in one piece, even if another thread holds the stream's lock."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return the function's result, or None if it fails or takes too long."""
    outcome: list[Any] = [None]

    def work() -> None:
        # An error here only affects the description of a hang; the hang itself is reported.
        with contextlib.suppress(Exception):
            outcome[0] = function()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]
