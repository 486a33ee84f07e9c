"""Global batches cut out of an order, one rank's slice at a time, and a background thread to fetch
ahead.

Every rank computes the same global batch and takes its own contiguous part, so the concatenation
over ranks is the same for any number of them, and resuming is a seek.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from shards.errors import DataError
from shards.order import BatchRows, EpochOrder, Position

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.1
_JOIN_S = 10.0


class Stream:
    """This rank's slices of the global batches, without end.

    Args:
        order: the order of the units.
        global_batch: units a step over all ranks.
        rank: this process's number, from 0.
        world_size: number of processes.
        position: where to go on (from a checkpoint); None starts at the beginning.

    Attributes:
        position: the place after the global batch that was yielded last. The trainer keeps the
            position of the batches it has *consumed*, from :attr:`BatchRows.position`, not this
            one, which a prefetching thread moves ahead.

    Raises:
        DataError: ``global_batch`` cannot be divided by ``world_size``, or ``position`` belongs to
            another fingerprint or seed.
        ValueError: ``rank`` is not within the world.
    """

    def __init__(
        self,
        order: EpochOrder,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        position: Position | None = None,
    ) -> None:
        """Check the arithmetic and seek to the position."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not within 0 .. {world_size - 1}")
        if global_batch < 1:
            raise DataError(f"the global batch is {global_batch}, expected at least 1")
        if global_batch % world_size:
            whole = global_batch // world_size
            below, above = whole * world_size, (whole + 1) * world_size
            nearest = f"{below} or {above}" if below else f"{above}"
            raise DataError(
                f"a global batch of {global_batch} cannot be shared by {world_size} processes: "
                f"{global_batch} = {whole} x {world_size} + {global_batch % world_size}; "
                f"use {nearest}, or another number of processes"
            )
        self.order = order
        self.global_batch = global_batch
        self.rank = rank
        self.world_size = world_size
        self._total = 0 if position is None else order.total_at(position)

    @property
    def position(self) -> Position:
        """The place after the last global batch that was yielded."""
        return self.order.position_at(self._total)

    def __iter__(self) -> Iterator[BatchRows]:
        """The stream itself."""
        return self

    def __next__(self) -> BatchRows:
        """This rank's slice of the next global batch."""
        share = self.global_batch // self.world_size
        start = self._total + self.rank * share
        rows, epochs = self.order.span(start, start + share)
        self._total += self.global_batch
        return BatchRows(rows, epochs, self.position)


class _Failure:
    """An exception on its way from the background thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        """Keep the exception."""
        self.error = error


class _End:
    """Nothing more comes."""


class Prefetch(Generic[R]):
    """Iterator over ``fn(item)`` whose calls run ahead in one background thread. See
    :func:`prefetch`."""

    def __init__(self, iterable: Iterable[T], fn: Callable[[T], R], depth: int = 2) -> None:
        """Start the thread."""
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        self._queue: queue.Queue[R | _Failure | _End] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._produce, args=(iterable, fn), name="prefetch", daemon=True
        )
        self._thread.start()

    def _put(self, item: "R | _Failure | _End") -> None:
        """Wait for room, but not after the consumer has closed."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _produce(self, iterable: Iterable[T], fn: Callable[[T], R]) -> None:
        try:
            for item in iterable:
                if self._stop.is_set():
                    return
                self._put(fn(item))
            self._put(_End())
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put(_Failure(error))

    def __iter__(self) -> Iterator[R]:
        """The iterator itself."""
        return self

    def __next__(self) -> R:
        """The next result, or the exception that came in its place."""
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if isinstance(item, _Failure):
                self.close()
                raise item.error
            if isinstance(item, _End):
                self.close()
                break
            return item
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and drop what it has fetched. Safe to call twice, and from ``finally``.

        Waits for the call of ``fn`` that is under way, but not for ever: the thread is a daemon.
        """
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=_JOIN_S)
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return

    def __enter__(self) -> "Prefetch[R]":
        """The iterator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def prefetch(iterable: Iterable[T], fn: Callable[[T], R], depth: int = 2) -> Prefetch[R]:
    """Yield ``fn(item)`` for the items in order, computed up to ``depth`` ahead in a background
    thread.

    An exception of the iterable or of ``fn`` is raised in the consumer, after the results before
    it. Use as a context manager, or call ``close``, when leaving before the end.

    Args:
        iterable: the items; consumed by the thread alone.
        fn: what to do with each; NumPy work releases the interpreter lock where it matters.
        depth: results kept ready.

    Raises:
        ValueError: ``depth`` is below 1.
    """
    return Prefetch(iterable, fn, depth)


__all__ = ["BatchRows", "Position", "Prefetch", "Stream", "prefetch"]
