"""What teachers say about a batch, read from their columns. Holds no torch and no model.

A read is one gather a teacher and tensor out of memory-mapped files: whatever the number of
processes on a node, their pages are in its memory once, as the page cache.

Shapes: M teachers, U distinct titles, B samples, C candidates, E_m width of teacher m.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.columns import ColumnReader
from shards.reader import ShardSet
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


class TeacherSignals(Protocol):
    """What M teachers say about the texts and impressions of a batch: stored or live, in stage I
    and in stage II."""

    dims: list[int]
    """Width of every teacher's vectors; empty where no vectors are read."""

    @property
    def columns(self) -> Sequence[ColumnReader]:
        """The columns that are read (of logits, those of the first epoch); none of live
        teachers."""
        ...

    def read(
        self,
        rows: Mapping[str, np.ndarray],
        positions_BC: np.ndarray | None = None,
        epochs_B: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The teachers' side of a micro-batch.

        Args:
            rows: Whose vectors are asked for, int64[n] by name. In stage I ``title`` and ``body``,
                rows of articles. In stage II ``news``, rows of articles, where -1 asks for the
                vector of the empty title, and ``user``, rows of impressions.
            positions_BC: Stage II: places of the candidates within their impressions, which are
                those of ``user``.
            epochs_B: Stage I: the epoch that each of ``body`` is read in, which decides its
                negatives.

        Returns:
            ``teacher.m.<name>`` [n, E_m] for every name and teacher, float16 or float32; in stage
            II, and where logits are stored, also ``teacher.m.scores`` [B, C].
        """
        ...


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

    def read(
        self,
        rows: Mapping[str, np.ndarray],
        positions_BC: np.ndarray | None = None,
        epochs_B: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """See :meth:`TeacherSignals.read`."""
        return {
            f"teacher.{m}.{name}": gather_vectors(column, name, of_name)
            for m, column in enumerate(self.columns)
            for name, of_name in rows.items()
        }


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

    def read(
        self,
        rows: Mapping[str, np.ndarray],
        positions_BC: np.ndarray | None = None,
        epochs_B: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """See :meth:`TeacherSignals.read`."""
        news_U, impressions_B = rows["news"], rows["user"]
        signals = {}
        is_empty = news_U < 0
        articles_U = np.where(is_empty, 0, news_U)
        for m, (news, clicked) in enumerate(zip(self.news, self.clicked, strict=True)):
            vectors = gather_vectors(news, "news", articles_U)
            vectors[is_empty] = self.empty[m]
            values, offsets = clicked.gather_ragged("scores", impressions_B)
            if (positions_BC >= np.diff(offsets)[:, None]).any():
                raise _unfit(clicked, "fewer scores than candidates")
            signals[f"teacher.{m}.news"] = vectors
            signals[f"teacher.{m}.user"] = user_vectors(clicked, impressions_B)
            signals[f"teacher.{m}.scores"] = values[offsets[:-1, None] + positions_BC]
        return signals


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
