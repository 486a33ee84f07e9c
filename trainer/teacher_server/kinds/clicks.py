"""Stage II: outputs of a finetuned recommender for every article and every impression of a log.

News vectors belong to the articles; the vector of the empty title is in a file of its own.
Impressions have one user vector per distinct history, and the score of each candidate.

Users and scores are computed from news vectors in float32. If news vectors are stored in a smaller
type, float32 vectors are kept in a working column while a teacher's cells are filled.

Shapes: U distinct titles, B impressions, C candidates, K candidates of all, E news width.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.column_extras import EMPTY, read_vector, write_vector
from shards.columns import ColumnReader
from shards.ragged import offsets_from_lengths
from shards.reader import ShardSet
from shards.texts import TextView
from trainer.errors import DamageError, ModelError
from trainer.export.folder import load_export
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds.base import Count, Errors, Said, Signal, Tensors, article_identity
from trainer.teacher_server.request import Source
from trainer.teacher_server.signals import ClickRows, ClicksSaid, Stored, tensors
from trainer.teacher_server.storage import (
    Ragged,
    gather_ragged_vectors,
    gather_vectors,
    store_plain,
    store_values,
    value_bytes,
    vector_bytes,
)

if TYPE_CHECKING:
    from trainer.teacher_server.fill import Filler
    from trainer.teacher_server.outputs import TeacherModel

FORMAT = 2
"""Version of columns over impressions: since 2, impressions with the same history share its user
vector."""
ROW_BYTES = 20
"""Bytes per impression: the offsets of its scores and user vector, and the vector's holder."""


def news_identity(teacher: Any, source: Source, dtype: str) -> dict[str, Any]:
    """Return the identity of news vectors.

    Raises:
        ModelError: The teacher does not have a user encoder.
    """
    if not teacher.is_recommender:
        raise ModelError(
            f"{teacher.folder} does not have a user encoder: stage II needs finetuned teachers "
            "(tnr train finetune), not post-trained ones"
        )
    return article_identity(teacher, source, dtype)


class NewsVectors(Signal):
    """``news`` vectors [E] of every article, and the empty title's in ``empty.npy``."""

    name = "teacher-news"
    vectors = ("news",)
    extra = "the vector of the empty title"

    def identity(self) -> dict[str, Any]:
        """Return the teacher, its texts, the articles and the storage type."""
        return news_identity(self.teacher, self.source, self.dtype)

    def texts(self) -> Sequence[TextView]:
        """Return the texts that the teacher reads of an article."""
        return (self.teacher.news_texts(self.teacher.tokens(self.source.articles)),)

    def encode(self, model: "TeacherModel", rows: np.ndarray, count: Count = None) -> Tensors:
        """Compute vectors of articles."""
        return {"news": model.titles(rows, count)}

    @cached_property
    def exact(self) -> Signal:
        """The same vectors in float32: this column itself, or the working column."""
        return self if self.dtype == "float32" else ExactNews(self.teacher, self.source)

    def cell(self, filler: "Filler", shard: int, count: Count) -> Tensors | None:
        """Compute the tensors of a cell, and keep the float32 vectors for the impressions."""
        if self.exact is self:
            return super().cell(filler, shard, count)
        return store_values(filler.cell_of(self.exact, shard, count), self.dtype)

    def compare(
        self, model: "TeacherModel", reader: ColumnReader, rows: np.ndarray
    ) -> list[Errors]:
        """Return the errors of news vectors and of the empty title's vector."""
        stored_E = read_empty(self.shard_set, self.folder)
        empty = Errors.between("empty title", stored_E[None], model.empty_title()[None])
        return [*super().compare(model, reader, rows), empty._replace(mend=EMPTY)]

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """See :meth:`shards.column_kinds.ColumnKind.check_folder`."""
        read_vector(folder)

    def check_extra(self) -> None:
        """Check the vector of the empty title."""
        read_empty(self.shard_set, self.folder)

    def write_extra(self, model: "TeacherModel") -> None:
        """Write the vector of the empty title."""
        write_vector(self.folder, store_plain(model.empty_title(), self.dtype))


def read_empty(shard_set: ShardSet, folder: Path) -> np.ndarray:
    """Read the stored vector [E] of the empty title of a column of news vectors.

    Raises:
        DamageError: The vector is missing or damaged; the message names the remedy.
    """
    if shard_set.mirror is not None and shard_set.mirror.is_elsewhere(folder):
        shard_set.mirror.add_extras(folder)
    try:
        return read_vector(folder)
    except DamageError as error:
        mend = "tnr teachers cache computes it again, and encodes nothing else"
        raise DamageError(f"{error}; {mend}") from error


class ExactNews(NewsVectors):
    """News vectors in float32: a working column while a teacher's cells are filled."""

    name = "teacher-news-exact"
    is_working = True

    @property
    def dtype(self) -> str:
        """float32, whatever the storage type of news vectors."""
        return "float32"

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Check nothing: a working column does not have the empty title's vector."""


class ClickScores(Signal):
    """``scores`` [K] of every impression's candidates, and ``user`` vectors [E].

    There is one user vector per distinct history, stored with the first impression that has it
    (``holder``).
    """

    name = "teacher-clicks"
    over = "impressions"
    vectors = ("user.values",)

    def identity(self) -> dict[str, Any]:
        """Return the identity of news vectors, the impressions, and the history length."""
        return news_identity(self.teacher, self.source, self.dtype) | {
            "format": FORMAT,
            "impressions": self.source.over("impressions").fingerprint,
            "history_length": self.teacher.info["history_length"],
        }

    @cached_property
    def news(self) -> NewsVectors:
        """News vectors of the teacher."""
        return NewsVectors(self.teacher, self.source)

    @cached_property
    def working(self) -> Signal | None:
        """News vectors in float32, if they are stored in a smaller type."""
        return None if self.news.exact is self.news else self.news.exact

    @property
    def _holders(self) -> np.ndarray:
        return self.source.holders(int(self.teacher.info["history_length"]))

    def row_bytes(self) -> np.ndarray:
        """Return the bytes of user vectors, scores, and the index of holders."""
        starts, clicks, holder = self.shard_set.shard_starts, self.source.clicks, self._holders
        cells = range(self.shard_set.num_shards)
        shown = np.array([int(clicks.reader.cell(s)["candidates.offsets"][-1]) for s in cells])
        own = np.concatenate([[0], np.cumsum(holder == np.arange(len(holder)))])
        held = own[starts[1:]] - own[starts[:-1]]
        rows = np.diff(starts)
        found: np.ndarray = (
            held * self.vector_bytes + shown * value_bytes(self.dtype) + rows * ROW_BYTES
        )
        return found

    @classmethod
    def most_bytes(cls, rows: Mapping[str, int], width: int, dtype: str) -> int:
        """Return the bytes of a column if no history repeats."""
        users = rows["impressions"] * (vector_bytes(width, dtype) + ROW_BYTES)
        return users + rows["candidates"] * value_bytes(dtype)

    def encode(self, model: "TeacherModel", rows: np.ndarray, count: Count = None) -> Said:
        """Compute the user vector and the scores of each impression."""
        users, scores, offsets = model.impressions(model.titles, self.source.clicks, rows, count)
        return {"user": users, "scores": Ragged(scores, offsets)}

    def read(self, reader: ColumnReader, rows: np.ndarray) -> Said:
        """Return the stored user vector and scores of each impression."""
        scores = Ragged(*reader.gather_ragged("scores", rows))
        return {"user": user_vectors(reader, rows), "scores": scores}

    def cell(self, filler: "Filler", shard: int, count: Count) -> Tensors | None:
        """Compute the tensors of a cell from the float32 news vectors of all articles."""
        news, rows = filler.complete(self.news.exact, unless=self), self.rows(shard)
        if news is None:
            return None
        users, scores, offsets = filler.model.impressions(
            lambda articles: news.gather("news", articles), self.source.clicks, rows, count
        )
        holder = self._holders[rows]
        holds = holder == rows
        held = Ragged(users[holds], offsets_from_lengths(holds.astype(np.int64)))
        said = {"holder": holder, "user": held, "scores": Ragged(scores, offsets)}
        return store_values(said, self.dtype)


class StoredClickSignals(Stored[ClicksSaid]):
    """Stage II signals from stored vectors and scores.

    Arguments and errors are those of :class:`trainer.teacher_server.kinds.text.StoredTextSignals`,
    plus the impression set.
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
        self.dims: list[int] = []
        source = Source(articles, impressions, dtype, compute)
        for teacher in map(load_export, teachers):
            news = NewsVectors(teacher, source)
            self.news.append(news.open(follower))
            self.clicked.append(ClickScores(teacher, source).open(follower))
            self.dims.append(news.width)
            try:
                self.empty.append(read_empty(articles, news.folder))
            except DamageError as error:
                raise news.unusable(error) from error
            if (found := len(self.empty[-1])) != news.width:
                what = f"a vector of the empty title of {found} values, not {news.width}"
                raise _unfit(self.news[-1], what)

    @property
    def columns(self) -> list[ColumnReader]:
        """See :class:`trainer.teacher_server.signals.TeacherSignals`."""
        return [one for both in zip(self.news, self.clicked, strict=True) for one in both]

    def read(self, rows: ClickRows) -> ClicksSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
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
    """Return user vectors [B, E] of impressions.

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
