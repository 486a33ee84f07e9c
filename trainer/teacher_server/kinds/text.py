"""Stage I: title and body vectors of every article, by a post-trained news encoder.

Shapes: U distinct titles, B bodies, E news width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.reader import ShardSet
from shards.texts import TextView
from trainer.errors import ModelError
from trainer.export.folder import load_export
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds.base import Count, Signal, Tensors, article_identity
from trainer.teacher_server.request import Source
from trainer.teacher_server.signals import Stored, TextRows, TextsSaid, tensors
from trainer.teacher_server.storage import gather_vectors

if TYPE_CHECKING:
    from trainer.teacher_server.outputs import TeacherModel


class TextVectors(Signal):
    """``title`` and ``body`` vectors [E] of every article."""

    name = "teacher-text"
    vectors = ("title", "body")

    def identity(self) -> dict[str, Any]:
        """Return the teacher, its texts, the articles and the storage type.

        Raises:
            ModelError: The teacher was not post-trained on bodies, so its body length is unknown.
        """
        teacher = self.teacher
        if not teacher.info.get("max_body_tokens"):
            raise ModelError(
                f"{teacher.folder} has no max_body_tokens: it was not post-trained on title and "
                "body pairs, so it cannot be a stage I teacher"
            )
        lengths = {"max_body_tokens": teacher.info["max_body_tokens"]}
        return article_identity(teacher, self.source, self.dtype, **lengths)

    def texts(self) -> Sequence[TextView]:
        """Return the views of titles (or other fields read in recommendation) and bodies."""
        tokens = self.teacher.tokens(self.source.articles)
        return self.teacher.news_texts(tokens), self.teacher.body_texts(tokens)

    def encode(self, model: "TeacherModel", rows: np.ndarray, count: Count = None) -> Tensors:
        """Compute vectors of articles, bodies first: they hold the largest batch."""
        body = model.bodies(rows, count)
        return {"title": model.titles(rows, count), "body": body}


class StoredTextSignals(Stored[TextsSaid]):
    """Stage I signals from stored vectors.

    Args:
        articles: The article set.
        teachers: Exported teachers, in order, opened but not loaded.
        dtype: Storage type of the columns.
        compute: Precision in which the columns were computed.
        follower: Waits for cells that are still being filled; None refuses incomplete columns.

    Raises:
        ColumnError: See :meth:`trainer.teacher_server.kinds.base.Signal.open`.
    """

    def __init__(
        self,
        articles: ShardSet,
        teachers: Sequence[str | Path],
        dtype: str,
        compute: str,
        follower: Follower | None = None,
    ) -> None:
        source = Source(articles, None, dtype, compute)
        signals = [TextVectors(load_export(teacher), source) for teacher in teachers]
        self.columns = [signal.open(follower) for signal in signals]
        self.dims = [signal.width for signal in signals]

    def read(self, rows: TextRows) -> TextsSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        return TextsSaid(
            titles=tensors(gather_vectors(column, "title", rows.titles) for column in self.columns),
            bodies=tensors(gather_vectors(column, "body", rows.bodies) for column in self.columns),
        )
