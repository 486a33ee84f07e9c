"""Requests to teachers about a batch, and their outputs, stored or live.

This module does not import torch.

A read of stored signals is one gather per teacher and tensor from memory-mapped files: all
processes on a node share one copy of their pages, in the page cache.

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
    """Request of stage I."""

    titles: np.ndarray
    """Rows of articles, int64[U]."""
    bodies: np.ndarray
    """Rows of articles, int64[B]."""
    epochs: np.ndarray
    """The epoch in which each of the bodies is read, int64[B]; it determines their negatives."""


@dataclass(frozen=True)
class TextsSaid(Batch):
    """Outputs of M teachers in stage I, float16 or float32."""

    titles: tuple[Tensor, ...] = ()
    """Vectors [U, E_m] of each teacher; empty if no vectors are read."""
    bodies: tuple[Tensor, ...] = ()
    """Vectors [B, E_m] of each teacher; empty if no vectors are read."""
    scores: tuple[Tensor, ...] = ()
    """Stored logits [B, C] of each teacher; empty if they are computed from the vectors."""


@dataclass(frozen=True)
class ClickRows:
    """Request of stage II."""

    news: np.ndarray
    """Rows of articles, int64[U]; -1 stands for the empty title."""
    impressions: np.ndarray
    """Rows of impressions, int64[B]."""
    positions: np.ndarray
    """Places of the candidates within their impressions, int64[B, C]."""


@dataclass(frozen=True)
class ClicksSaid(Batch):
    """Outputs of M teachers in stage II, float16 or float32."""

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
    """Outputs of M teachers for the texts and impressions of a batch.

    They are stored or live, in stage I and in stage II.
    """

    dims: list[int]
    """Width of every teacher's vectors; empty if no vectors are read."""

    @property
    def columns(self) -> Sequence[ColumnReader]:
        """Columns that are read, for logits those of the first epoch; empty for live teachers."""
        ...

    def read(self, rows: Rows) -> Batch:
        """Return the teachers' part of a micro-batch: stored outputs, or live teachers' inputs."""
        ...

    def say(self, read: Any) -> Said:
        """Return the teachers' outputs, in the module half, from the result of :meth:`read`."""
        ...


class Stored(Generic[Told]):
    """Stored signals: the stored values are the teachers' outputs."""

    def say(self, read: Told) -> Told:
        """See :meth:`TeacherSignals.say`."""
        return read


TextSignals = TeacherSignals[TextRows, TextsSaid]
ClickSignals = TeacherSignals[ClickRows, ClicksSaid]


def tensors(arrays: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """Convert arrays to tensors, one per teacher."""
    return tuple(as_tensor(array) for array in arrays)
