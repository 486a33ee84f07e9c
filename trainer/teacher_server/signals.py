"""What teachers say about a batch, read from their columns. Holds no torch and no model.

Shapes: M teachers, U distinct titles, B samples, C candidates, E_m width of teacher m.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from shards.columns import ColumnReader
from shards.reader import ShardSet
from trainer.errors import ColumnError
from trainer.export.folder import Export, load_export
from trainer.teacher_server.identity import (
    CLICKS,
    NEWS,
    TEXT,
    clicks_identity,
    news_identity,
    text_identity,
)

EMPTY = "empty.npy"
"""File of a ``teacher-news`` column with the vector of the empty title (all padding)."""


class TextSignals(Protocol):
    """Stage I: vectors of titles and bodies."""

    dims: list[int]
    """Width of every teacher's vectors."""

    def text(self, titles_U: np.ndarray, bodies_B: np.ndarray) -> dict[str, np.ndarray]:
        """``teacher.m.title`` [U, E_m] and ``teacher.m.body`` [B, E_m] of article rows."""
        ...


class ClickSignals(Protocol):
    """Stage II: news vectors, user vectors and scores of candidates."""

    dims: list[int]
    """Width of every teacher's vectors."""

    def clicks(
        self, news_U: np.ndarray, impressions_B: np.ndarray, positions_BC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """``teacher.m.news`` [U, E_m], ``teacher.m.user`` [B, E_m], ``teacher.m.scores`` [B, C].

        A news row of -1 asks for the vector of the empty title.
        """
        ...


class StoredTextSignals:
    """Stage I signals from ``teacher-text`` columns."""

    def __init__(
        self, articles: ShardSet, teachers: Sequence[str], dtype: str, compute: str
    ) -> None:
        self.columns = []
        for teacher in map(load_export, teachers):
            wanted = text_identity(teacher, articles, dtype, compute)
            self.columns.append(
                _open(articles, TEXT, wanted, teacher, _stage_1(articles, dtype, compute))
            )
        self.dims = [width(column, "title") for column in self.columns]

    def text(self, titles_U: np.ndarray, bodies_B: np.ndarray) -> dict[str, np.ndarray]:
        """See :class:`TextSignals`."""
        signals = {}
        for m, column in enumerate(self.columns):
            signals[f"teacher.{m}.title"] = column.gather("title", titles_U)
            signals[f"teacher.{m}.body"] = column.gather("body", bodies_B)
        return signals


class StoredClickSignals:
    """Stage II signals from ``teacher-news`` and ``teacher-clicks`` columns."""

    def __init__(
        self,
        articles: ShardSet,
        impressions: ShardSet,
        teachers: Sequence[str],
        dtype: str,
        compute: str,
    ) -> None:
        self.news: list[ColumnReader] = []
        self.clicked: list[ColumnReader] = []
        self.empty: list[np.ndarray] = []
        remedy = _stage_2(articles, impressions, dtype, compute)
        for teacher in map(load_export, teachers):
            wanted = news_identity(teacher, articles, dtype, compute)
            news = _open(articles, NEWS, wanted, teacher, remedy)
            wanted = clicks_identity(teacher, articles, impressions, dtype, compute)
            self.news.append(news)
            self.clicked.append(_open(impressions, CLICKS, wanted, teacher, remedy))
            self.empty.append(np.load(news.folder / EMPTY, allow_pickle=False))
        self.dims = [width(column, "news") for column in self.news]

    def clicks(
        self, news_U: np.ndarray, impressions_B: np.ndarray, positions_BC: np.ndarray
    ) -> dict[str, np.ndarray]:
        """See :class:`ClickSignals`."""
        signals = {}
        is_empty = news_U < 0
        for m, (news, clicked) in enumerate(zip(self.news, self.clicked, strict=True)):
            vectors = news.gather("news", np.where(is_empty, 0, news_U))
            vectors[is_empty] = self.empty[m]
            values, offsets = clicked.gather_ragged("scores", impressions_B)
            signals[f"teacher.{m}.news"] = vectors
            signals[f"teacher.{m}.user"] = user_vectors(clicked, impressions_B)
            signals[f"teacher.{m}.scores"] = values[offsets[:-1, None] + positions_BC]
        return signals


def user_vectors(clicked: ColumnReader, impressions_B: np.ndarray) -> np.ndarray:
    """User vectors [B, E] of impressions from a ``teacher-clicks`` column.

    Impressions with the same history share one vector, stored with the first of them.
    """
    holder_B = clicked.gather("holder", impressions_B)
    vectors_BE, _ = clicked.gather_ragged("user", holder_B)
    return vectors_BE


def width(column: ColumnReader, tensor: str) -> int:
    """Width of the vectors of a column."""
    _, shape = column.tensors[tensor]
    return int(shape[0])


def _open(
    shard_set: ShardSet, name: str, wanted: dict[str, Any], teacher: Export, remedy: str
) -> ColumnReader:
    try:
        return ColumnReader.open(shard_set, name, wanted)
    except ColumnError as error:
        raise ColumnError(
            f"no usable {name} column of teacher {teacher.folder}: {error}. "
            f"Repair: {remedy} --models {teacher.folder}"
        ) from error


def _stage_1(articles: ShardSet, dtype: str, compute: str) -> str:
    return (
        f"tnr teachers cache --stage 1 --articles {articles.location} --dtype {dtype} "
        f"--compute {compute}"
    )


def _stage_2(articles: ShardSet, impressions: ShardSet, dtype: str, compute: str) -> str:
    return (
        f"tnr teachers cache --stage 2 --articles {articles.location} "
        f"--clicks {impressions.location} --dtype {dtype} --compute {compute}"
    )
