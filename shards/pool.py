"""Tasks done in order of their results, in this process or in several.

A process whose parent is gone, or was interrupted, leaves at once, whatever it does: it must not
write where the next build already works, and nobody waits for it. An interrupt at the terminal
reaches all processes; the parent alone deals with it.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import connection, resource_tracker
from types import TracebackType
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """One or several processes; use it as a context manager."""

    def __init__(self, processes: int, begin: Callable[[], None] | None = None) -> None:
        """Start none yet: with one of them, or one task, the work is done in this process.

        Args:
            processes: How many.
            begin: What each of several does first.
        """
        self.processes = processes
        self._begin = begin
        self._pool: ProcessPoolExecutor | None = None
        self._closed_to_end: connection.Connection | None = None

    def __enter__(self) -> "Workers":
        """Return itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes; after an error, without what has not begun.

        An interrupt, before or while the tasks in hand are waited for, ends the processes at once.
        """
        if self._pool is None or self._closed_to_end is None:
            return
        try:
            if not isinstance(error, KeyboardInterrupt):
                self._pool.shutdown(wait=True, cancel_futures=True)
        finally:
            with _signals_ignored():  # a second one would leave the processes waiting for ever
                self._closed_to_end.close()
                self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task, in order; few tasks and results are held at a time.

        Args:
            function: What to do; it and its tasks go to other processes.
            tasks: Taken one by one as there is room for them.

        Raises:
            BrokenProcessPool: If a process was killed.
        """
        tasks = iter(tasks)
        first = list(islice(tasks, 2))
        tasks = chain(first, tasks)
        if self.processes == 1 or len(first) < 2:
            yield from map(function, tasks)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            end, self._closed_to_end = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.processes, context, _start, (end, self._begin))
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            with interrupt_blocked():  # processes start here, and inherit it
                waiting.append(self._pool.submit(function, task))
            if len(waiting) > 2 * self.processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Hold back Ctrl-C while processes are started; they never see it, even while they import."""
    resource_tracker.ensure_running()  # with the first process otherwise, and lets signals through
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


def _start(end: connection.Connection, begin: Callable[[], None] | None) -> None:
    threading.Thread(target=_leave, args=(end,), daemon=True).start()
    if begin is not None:
        begin()


def _leave(end: connection.Connection) -> None:
    """Leave once the other side of the pipe is closed, by the parent or with it."""
    connection.wait([end])
    os._exit(1)
