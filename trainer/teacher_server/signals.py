"""What teachers are asked about a batch and what they say, stored or live. Imports no torch.

A read of stored signals is one gather a teacher and tensor out of memory-mapped files: whatever the
number of processes on a node, their pages are in its memory once, as the page cache.

Shapes: M teachers, U distinct titles, B samples, C candidates, E_m width of teacher m.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from shards.columns import ColumnReader
from trainer.batch import Batch, as_tensor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TextRows:
    """What stage I asks for."""

    titles: np.ndarray
    """Rows of articles, int64[U]."""
    bodies: np.ndarray
    """Rows of articles, int64[B]."""
    epochs: np.ndarray
    """The epoch that each of the bodies is read in, int64[B]; it decides their negatives."""


@dataclass(frozen=True)
class TextsSaid(Batch):
    """What M teachers say in stage I, float16 or float32."""

    titles: tuple[Tensor, ...] = ()
    """Vectors [U, E_m] of each teacher; none where no vectors are read."""
    bodies: tuple[Tensor, ...] = ()
    """Vectors [B, E_m] of each teacher; none where no vectors are read."""
    scores: tuple[Tensor, ...] = ()
    """Stored logits [B, C] of each teacher; none where they are computed from the vectors."""


@dataclass(frozen=True)
class ClickRows:
    """What stage II asks for."""

    news: np.ndarray
    """Rows of articles, int64[U]; -1 asks for the vector of the empty title."""
    impressions: np.ndarray
    """Rows of impressions, int64[B]."""
    positions: np.ndarray
    """Places of the candidates within their impressions, int64[B, C]."""


@dataclass(frozen=True)
class ClicksSaid(Batch):
    """What M teachers say in stage II, float16 or float32."""

    news: tuple[Tensor, ...]
    """Vectors [U, E_m] of each teacher."""
    users: tuple[Tensor, ...]
    """Vectors [B, E_m] of each teacher."""
    scores: tuple[Tensor, ...]
    """Scores [B, C] of each teacher."""


Rows = TypeVar("Rows", contravariant=True)
Said = TypeVar("Said", covariant=True)
Told = TypeVar("Told")


class TeacherSignals(Protocol[Rows, Said]):
    """What M teachers say about the texts and impressions of a batch: stored or live, in stage I
    and in stage II."""

    dims: list[int]
    """Width of every teacher's vectors; empty where no vectors are read."""

    @property
    def columns(self) -> Sequence[ColumnReader]:
        """The columns that are read (of logits, those of the first epoch); none of live
        teachers."""
        ...

    def read(self, rows: Rows) -> Batch:
        """The teachers' side of a micro-batch: what they say, or what live ones read."""
        ...

    def say(self, read: Any) -> Said:
        """What the teachers say, in the module half, from what :meth:`read` put into the batch."""
        ...


class Stored(Generic[Told]):
    """Signals that are stored: what is read is what the teachers say."""

    def say(self, read: Told) -> Told:
        """See :meth:`TeacherSignals.say`."""
        return read


TextSignals = TeacherSignals[TextRows, TextsSaid]
ClickSignals = TeacherSignals[ClickRows, ClicksSaid]


def tensors(arrays: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """One tensor a teacher."""
    return tuple(as_tensor(array) for array in arrays)
