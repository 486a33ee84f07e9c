"""Cut global batches from an order into rank slices, and prefetch in threads.

Every rank computes the same global batch and takes its own contiguous part, so the concatenation
over ranks is the same for any number of ranks, and resuming is a seek.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Generic, TypeVar

from shards.errors import DataError
from shards.order import BatchRows, EpochOrder, PeerRows, Position

T = TypeVar("T")
R = TypeVar("R")

_JOIN_S = 10.0


class Stream:
    """Endless stream of this rank's slices of the global batches.

    Args:
        order: the order of the units.
        global_batch: units per step over all ranks.
        rank: this process's number, from 0.
        world_size: number of processes.
        position: position to resume from (from a checkpoint); None starts at the beginning.

    Attributes:
        position: the position after the last yielded global batch. The trainer keeps the position
            of the batches that it has *consumed*, from :attr:`BatchRows.position`, instead: a
            prefetching thread moves this one ahead.

    Raises:
        DataError: ``global_batch`` is not divisible by ``world_size``, or ``position`` belongs to
            another order or global batch; the message names the field.
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
        self._total = 0
        if position is not None:
            if position.global_batch not in (None, global_batch):
                raise DataError(
                    "the position to resume from belongs to another order of samples: global_batch "
                    f"is {position.global_batch} there and {global_batch} here; resume with the "
                    "global batch of that run, or start a new run"
                )
            self._total = order.total_at(position)

    @property
    def position(self) -> Position:
        """The position after the last yielded global batch."""
        return replace(self.order.position_at(self._total), global_batch=self.global_batch)

    def __iter__(self) -> Iterator[BatchRows]:
        """Return the stream itself."""
        return self

    def __next__(self) -> BatchRows:
        """Return this rank's slice of the next global batch."""
        rows, epochs = self.order.span(self._total, self._total + self.global_batch)
        self._total += self.global_batch
        if self.world_size == 1:
            return BatchRows(rows, epochs, self.position)
        peers = PeerRows(
            rows.reshape(self.world_size, -1), epochs.reshape(self.world_size, -1), self.rank
        )
        return BatchRows(peers.rows[self.rank], peers.epochs[self.rank], self.position, peers)


class _Failure:
    """An exception on its way from a worker to the consumer."""

    def __init__(self, error: BaseException) -> None:
        """Keep the exception."""
        self.error = error


class _End:
    """Marks the end of the items."""


class Prefetch(Generic[R]):
    """Iterator over ``fn(item)`` whose calls run ahead in worker threads. See :func:`prefetch`."""

    def __init__(
        self, iterable: Iterable[T], fn: Callable[[T], R], depth: int = 2, workers: int = 1
    ) -> None:
        """Start the threads."""
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        if workers < 0:
            raise ValueError(f"workers is {workers}, expected at least 0")
        self._items = iter(iterable)
        self._fn = fn
        self._depth = max(depth, workers)
        self._source = threading.Lock()  # one thread at a time takes an item, in order
        self._changed = threading.Condition()  # guards all attributes below
        self._outcomes: dict[int, R | _Failure | _End] = {}
        self._taken = 0
        self._given = 0
        self._is_over = False  # no further item is taken
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name="prefetch", daemon=True)
            for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        """Take items and store their outcomes in their slots, until the items end."""
        while True:
            with self._source:
                with self._changed:
                    self._changed.wait_for(self._may_go_on)
                    if self._is_over or self._is_closed:
                        return
                    number = self._taken
                    self._taken += 1
                item, ending = self._take()
            outcome = self._compute(item) if ending is None else ending
            with self._changed:
                self._outcomes[number] = outcome
                self._is_over |= isinstance(outcome, (_Failure, _End))
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        return self._is_over or self._is_closed or self._taken - self._given < self._depth

    def _take(self) -> tuple[Any, "_Failure | _End | None"]:
        """Take the next item, or the exception or end in its place."""
        try:
            return next(self._items), None
        except StopIteration:
            ending: _Failure | _End = _End()
        except BaseException as error:  # any exception is passed to the consumer
            ending = _Failure(error)
        with self._changed:
            self._is_over = True
        return None, ending

    def _compute(self, item: Any) -> "R | _Failure":
        try:
            return self._fn(item)
        except BaseException as error:  # any exception is passed to the consumer
            return _Failure(error)

    def __iter__(self) -> Iterator[R]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> R:
        """Return the next result, or raise the exception in its place."""
        outcome = self._next_outcome()
        if isinstance(outcome, (_Failure, _End)):
            self.close()
            if isinstance(outcome, _Failure):
                raise outcome.error
            raise StopIteration
        return outcome

    def _next_outcome(self) -> "R | _Failure | _End":
        if self._is_closed:
            return _End()
        if not self._threads:
            item, ending = self._take()
            return self._compute(item) if ending is None else ending
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._given in self._outcomes)
            if self._is_closed:
                return _End()
            taken = self._outcomes.pop(self._given)
            self._given += 1
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        """Stop the threads and drop the fetched results; idempotent, and safe in ``finally``.

        Waits for running calls of ``fn``, but not for ever: the threads are daemons.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._outcomes.clear()

    def __enter__(self) -> "Prefetch[R]":
        """Return the iterator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def prefetch(
    iterable: Iterable[T], fn: Callable[[T], R], depth: int = 2, workers: int = 1
) -> Prefetch[R]:
    """Yield ``fn(item)`` for the items in order, computed ahead in worker threads.

    The results and their order do not depend on the number of workers. An exception of the
    iterable or of ``fn`` is raised in the consumer, after the earlier results. Use it as a context
    manager, or call ``close``, if you stop before the end.

    Args:
        iterable: the items; taken by one thread at a time.
        fn: function of an item; NumPy releases the interpreter lock in expensive operations.
        depth: largest number of results that are ready or in progress; at least ``workers``.
        workers: number of threads; 0 computes in the calling thread when a result is requested.

    Raises:
        ValueError: ``depth`` is below 1, or ``workers`` below 0.
    """
    return Prefetch(iterable, fn, depth, workers)


__all__ = ["BatchRows", "Position", "Prefetch", "Stream", "prefetch"]
