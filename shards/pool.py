"""Run tasks in this process or in several, and yield their results in order.

Each process has its own pipe and shares nothing else: a process that is killed in the middle of a
task or a result leaves no lock that others wait for. A process exits at once when its parent was
killed, so that it does not write where the next build already works. An interrupt at the terminal
reaches all processes; only the parent handles it, and kills the others.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
_Pipe = connection.Connection


class Workers:
    """One or several processes; use it as a context manager."""

    def __init__(self, processes: int, begin: Callable[[], None] | None = None) -> None:
        """Prepare; :meth:`map` starts processes once it has several tasks.

        With one process, or with one task, the work is done in this process.

        Args:
            processes: Number of processes.
            begin: First action of each of several processes.
        """
        self.processes = processes
        self._begin = begin
        self._started: dict[_Pipe, BaseProcess] = {}
        self._idle: list[_Pipe] = []
        self._busy: dict[_Pipe, int] = {}
        self._waiting: deque[tuple[int, Callable[[Any], Any], Any]] = deque()
        self._results: dict[int, Any] = {}
        self._num_tasks = 0

    def __enter__(self) -> "Workers":
        """Return itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes; after an error, let each finish its current task first.

        An interrupt, before or during this, kills the processes.
        """
        try:
            self._waiting.clear()
            while self._busy and not isinstance(error, KeyboardInterrupt):
                with contextlib.suppress(BrokenProcessPool):
                    self._receive()
        finally:
            with _signals_ignored():
                for process in self._started.values():
                    process.kill()  # it waits for a task, or its result is not needed
                for pipe, process in self._started.items():
                    process.join()
                    pipe.close()
                self._started.clear()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield each task's result in order, with few tasks and results in memory.

        Args:
            function: The work; the function and its tasks are sent to other processes.
            tasks: Tasks, read one by one as processes become free.

        Raises:
            BrokenProcessPool: A process was killed.
        """
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        tasks = chain(first, tasks)
        if self.processes == 1 or len(first) < 2:
            yield from map(function, tasks)
            return
        given: deque[int] = deque()
        for task in tasks:
            given.append(self._num_tasks)
            self._waiting.append((self._num_tasks, function, task))
            self._num_tasks += 1
            self._send()
            if len(given) > 2 * self.processes:
                yield self._result(given.popleft())
        while given:
            yield self._result(given.popleft())

    def _result(self, number: int) -> Any:
        while number not in self._results:
            self._receive()
            self._send()  # before the caller works on the result
        is_done, result = self._results.pop(number)
        if not is_done:
            raise result
        return result

    def _send(self) -> None:
        """Give waiting tasks to free processes; start further processes up to the limit."""
        self._receive(timeout_s=0)
        while self._waiting and (self._idle or len(self._started) < self.processes):
            pipe = self._idle.pop() if self._idle else self._start()
            self._busy[pipe], *task = self._waiting.popleft()
            with contextlib.suppress(BrokenPipeError):  # a killed process is reported by the read
                pipe.send(task)

    def _start(self) -> _Pipe:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._begin), daemon=True)
        with interrupt_blocked():  # the process inherits the blocked signal
            process.start()
        theirs.close()
        self._started[pipe] = process
        return pipe

    def _receive(self, timeout_s: float | None = None) -> None:
        """Receive the available results, or wait for the next one.

        Raises:
            BrokenProcessPool: A process ended before it sent its result.
        """
        for pipe in connection.wait(list(self._busy), timeout_s):
            assert isinstance(pipe, _Pipe)
            number = self._busy.pop(pipe)
            try:
                self._results[number] = pipe.recv()
            except (EOFError, ConnectionResetError) as error:
                process = self._started.pop(pipe)
                process.join()
                raise BrokenProcessPool(
                    f"a process ended with exit code {process.exitcode} before its task was done"
                ) from error
            self._idle.append(pipe)


@contextlib.contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Block Ctrl-C while processes start; they never see it, not even while they import."""
    resource_tracker.ensure_running()  # else the first process starts it and unblocks the signal
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


def _serve(pipe: _Pipe, begin: Callable[[], None] | None) -> None:
    """Run one task after the other; the body of a process."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if begin is not None:
        begin()
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(task))
        except Exception as error:
            error.add_note("In another process:\n" + "".join(traceback.format_exception(error)))
            answer = (False, error)
        try:
            pipe.send(answer)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
            pipe.send((False, RuntimeError(f"the answer of {function} cannot be sent: {error}")))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
