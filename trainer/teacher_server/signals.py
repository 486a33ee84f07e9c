"""What teachers say about a batch, read from their columns. Imports no torch and no model.

A read is one gather a teacher and tensor out of memory-mapped files: whatever the number of
processes on a node, their pages are in its memory once, as the page cache.

Shapes: M teachers, U distinct titles, B samples, C candidates, E_m width of teacher m.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from shards.columns import ColumnReader
from shards.reader import ShardSet
from trainer.batch import Batch, as_tensor
from trainer.errors import ColumnError, DamageError
from trainer.export.folder import Export, load_export
from trainer.teacher_server.empty import read_empty
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.identity import (
    CLICKS,
    LOGITS,
    NEWS,
    TEXT,
    clicks_identity,
    news_identity,
    text_identity,
)
from trainer.teacher_server.request import Target
from trainer.teacher_server.storage import gather_ragged_vectors, gather_vectors

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

    def read(self, rows: Rows) -> Said:
        """The teachers' side of a micro-batch."""
        ...


TextSignals = TeacherSignals[TextRows, TextsSaid]
ClickSignals = TeacherSignals[ClickRows, ClicksSaid]


def tensors(arrays: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """One tensor a teacher."""
    return tuple(as_tensor(array) for array in arrays)


class StoredTextSignals:
    """Stage I signals from ``teacher-text`` columns.

    Args:
        articles: The article set.
        teachers: Exported teachers, in order; they are looked at, not loaded.
        dtype: How the columns are stored.
        compute: How they were computed.
        follower: Waits for cells that are still being filled; None refuses columns that are not
            complete.

    Raises:
        ColumnError: A column is not there, differs in a field, which is named, or is not complete;
            the message has the command that mends it.
    """

    def __init__(
        self,
        articles: ShardSet,
        teachers: Sequence[str | Path],
        dtype: str,
        compute: str,
        follower: Follower | None = None,
    ) -> None:
        remedy = _remedy(1, articles, None, dtype, compute)
        self.columns = [
            open_column(
                Target(articles, TEXT, text_identity(one, articles, dtype, compute)),
                one,
                _repair(remedy, one),
                follower,
            )
            for one in map(load_export, teachers)
        ]
        self.dims = [width(column, "title") for column in self.columns]

    def read(self, rows: TextRows) -> TextsSaid:
        """See :meth:`TeacherSignals.read`."""
        return TextsSaid(
            titles=tensors(gather_vectors(column, "title", rows.titles) for column in self.columns),
            bodies=tensors(gather_vectors(column, "body", rows.bodies) for column in self.columns),
        )


class StoredClickSignals:
    """Stage II signals from ``teacher-news`` and ``teacher-clicks`` columns.

    Arguments and errors as of :class:`StoredTextSignals`, with the impression set.
    """

    def __init__(
        self,
        articles: ShardSet,
        impressions: ShardSet,
        teachers: Sequence[str],
        dtype: str,
        compute: str,
        follower: Follower | None = None,
    ) -> None:
        self.news: list[ColumnReader] = []
        self.clicked: list[ColumnReader] = []
        self.empty: list[np.ndarray] = []
        remedy = _remedy(2, articles, impressions, dtype, compute)
        for teacher in map(load_export, teachers):
            repair = _repair(remedy, teacher)
            wanted = Target(articles, NEWS, news_identity(teacher, articles, dtype, compute))
            news = open_column(wanted, teacher, repair, follower)
            made_from = clicks_identity(teacher, articles, impressions, dtype, compute)
            wanted = Target(impressions, CLICKS, made_from)
            self.news.append(news)
            self.clicked.append(open_column(wanted, teacher, repair, follower))
            self.empty.append(_read_empty(news, teacher, repair))
        self.dims = [width(column, "news") for column in self.news]
        for news, empty_E, dim in zip(self.news, self.empty, self.dims, strict=True):
            if len(empty_E) != dim:
                raise _unfit(
                    news, f"a vector of the empty title of {len(empty_E)} values, not {dim}"
                )

    @property
    def columns(self) -> list[ColumnReader]:
        """See :class:`TeacherSignals`."""
        return [one for both in zip(self.news, self.clicked, strict=True) for one in both]

    def read(self, rows: ClickRows) -> ClicksSaid:
        """See :meth:`TeacherSignals.read`."""
        is_empty = rows.news < 0
        articles_U = np.where(is_empty, 0, rows.news)
        news, users, scores = [], [], []
        for m, (of_news, clicked) in enumerate(zip(self.news, self.clicked, strict=True)):
            vectors = gather_vectors(of_news, "news", articles_U)
            vectors[is_empty] = self.empty[m]
            values, offsets = clicked.gather_ragged("scores", rows.impressions)
            if (rows.positions >= np.diff(offsets)[:, None]).any():
                raise _unfit(clicked, "fewer scores than candidates")
            news.append(vectors)
            users.append(user_vectors(clicked, rows.impressions))
            scores.append(values[offsets[:-1, None] + rows.positions])
        return ClicksSaid(tensors(news), tensors(users), tensors(scores))


def user_vectors(clicked: ColumnReader, impressions_B: np.ndarray) -> np.ndarray:
    """User vectors [B, E] of impressions from a ``teacher-clicks`` column.

    Impressions with the same history share one vector, stored with the first of them.
    """
    holder_B = clicked.gather("holder", impressions_B)
    if (holder_B < 0).any() or (holder_B >= clicked.num_rows).any():
        raise _unfit(clicked, "an impression that is not in the log as the holder of a vector")
    vectors_BE = gather_ragged_vectors(clicked, "user", holder_B)
    if len(vectors_BE) != len(impressions_B):
        raise _unfit(clicked, "other than one user vector for each holder")
    return vectors_BE


def _unfit(column: ColumnReader, what: str) -> DamageError:
    return DamageError(
        f"{column.folder} has {what}: it was edited; delete it and run `{column.repair}`"
    )


def width(column: ColumnReader, tensor: str) -> int:
    """Width of the vectors of a column."""
    _, shape = column.tensors[tensor]
    return int(shape[0])


def open_column(
    wanted: Target, teacher: Export, repair: str, follower: Follower | None
) -> ColumnReader:
    """Open a teacher's column.

    Args:
        wanted: The column.
        teacher: Whose it is, for messages.
        repair: The command that fills it.
        follower: See :class:`StoredTextSignals`.

    Raises:
        ColumnError: See :class:`StoredTextSignals`.
    """
    if follower is not None:
        return follower.open(*wanted, str(teacher.folder), repair)
    try:
        return ColumnReader.open(*wanted)
    except ColumnError as error:
        drawn = f" for epoch {wanted.made_from['epoch']}" if wanted.name == LOGITS else ""
        raise ColumnError(
            f"no usable {wanted.name} column{drawn} of teacher {teacher.folder}: {error}. "
            f"Repair: {repair}"
        ) from error


def _read_empty(news: ColumnReader, teacher: Export, repair: str) -> np.ndarray:
    """The vector [E] of the empty title."""
    try:
        return read_empty(news.shard_set, news.folder)
    except DamageError as error:
        raise ColumnError(
            f"no usable {NEWS} column of teacher {teacher.folder}: {error}. Repair: {repair}"
        ) from error


def _repair(remedy: str, teacher: Export) -> str:
    """The command that fills a teacher's columns."""
    return f"{remedy} --models {shlex.quote(str(teacher.folder))}"


def _remedy(
    stage: int, articles: ShardSet, impressions: ShardSet | None, dtype: str, compute: str
) -> str:
    """The command that fills a stage's columns, without the teacher."""
    words = ["tnr", "teachers", "cache", "--stage", str(stage), "--articles", articles.location]
    if impressions is not None:
        words += ["--clicks", impressions.location]
    return shlex.join([*words, "--dtype", dtype, "--compute", compute])
