"""The same signals from teachers in memory: the oracle of the tests and the yardstick of the
benchmark."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from shards.clicks import ClickColumn
from shards.columns import ColumnReader
from shards.reader import ShardSet
from trainer.export.folder import load_export
from trainer.teacher_server.outputs import TeacherModel


class LiveTextSignals:
    """Stage I signals: every teacher encodes the batch's titles and bodies."""

    columns: tuple[ColumnReader, ...] = ()
    """Live teachers read none."""

    def __init__(self, articles: ShardSet, teachers: Sequence[str]) -> None:
        self.models = [TeacherModel(load_export(teacher), articles) for teacher in teachers]
        self.dims = [model.news_dim for model in self.models]

    @torch.inference_mode()
    def read(
        self,
        rows: Mapping[str, np.ndarray],
        positions_BC: np.ndarray | None = None,
        epochs_B: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        signals = {}
        for m, model in enumerate(self.models):
            signals[f"teacher.{m}.title"] = model.titles(rows["title"])
            signals[f"teacher.{m}.body"] = model.bodies(rows["body"])
        return signals


class LiveClickSignals:
    """Stage II signals: every teacher encodes the titles of the batch's impressions and scores
    them."""

    columns: tuple[ColumnReader, ...] = ()
    """Live teachers read none."""

    def __init__(self, articles: ShardSet, impressions: ShardSet, teachers: Sequence[str]) -> None:
        self.models = [TeacherModel(load_export(teacher), articles) for teacher in teachers]
        self.dims = [model.news_dim for model in self.models]
        self.column = ClickColumn.open(impressions, articles.num_rows)
        self.num_articles = articles.num_rows

    @torch.inference_mode()
    def read(
        self,
        rows: Mapping[str, np.ndarray],
        positions_BC: np.ndarray | None = None,
        epochs_B: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        news_U, impressions_B = rows["news"], rows["user"]
        signals = {}
        candidates, _ = self.column.candidates(impressions_B)
        for m, model in enumerate(self.models):
            length = model.export.info["history_length"]
            history, mask = self.column.history(impressions_B, length)
            read = np.unique(np.concatenate([history[mask], candidates, news_U[news_U >= 0]]))
            news_NE = np.zeros((self.num_articles, model.news_dim), np.float32)
            news_NE[read] = model.titles(read)
            users, scores, offsets = model.impressions(news_NE, self.column, impressions_B)
            vectors = news_NE[np.where(news_U < 0, 0, news_U)]
            if (news_U < 0).any():
                vectors[news_U < 0] = model.empty_title()
            signals[f"teacher.{m}.news"] = vectors
            signals[f"teacher.{m}.user"] = users
            signals[f"teacher.{m}.scores"] = scores[offsets[:-1, None] + positions_BC]
        return signals
