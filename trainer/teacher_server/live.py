"""The same signals from teachers in memory: the oracle of the tests and the yardstick of the
benchmark."""

from collections.abc import Sequence

import numpy as np

from shards.clicks import ClickColumn
from shards.columns import ColumnReader
from shards.reader import ShardSet
from trainer.export.folder import load_export
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.signals import (
    ClickRows,
    ClicksSaid,
    TextRows,
    TextsSaid,
    tensors,
)


class LiveTextSignals:
    """Stage I signals: every teacher encodes the batch's titles and bodies."""

    columns: tuple[ColumnReader, ...] = ()
    """Live teachers read none."""

    def __init__(self, articles: ShardSet, teachers: Sequence[str]) -> None:
        self.models = [TeacherModel(load_export(teacher), articles) for teacher in teachers]
        self.dims = [model.news_dim for model in self.models]

    def read(self, rows: TextRows) -> TextsSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        return TextsSaid(
            titles=tensors(model.titles(rows.titles) for model in self.models),
            bodies=tensors(model.bodies(rows.bodies) for model in self.models),
        )


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

    def read(self, rows: ClickRows) -> ClicksSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        news, users, scores = [], [], []
        candidates, _ = self.column.candidates(rows.impressions)
        is_empty = rows.news < 0
        for model in self.models:
            length = model.export.info["history_length"]
            history, mask = self.column.history(rows.impressions, length)
            read = np.unique(np.concatenate([history[mask], candidates, rows.news[~is_empty]]))
            news_NE = np.zeros((self.num_articles, model.news_dim), np.float32)
            news_NE[read] = model.titles(read)
            users_BE, scores_K, offsets = model.impressions(news_NE, self.column, rows.impressions)
            vectors = news_NE[np.where(is_empty, 0, rows.news)]
            if is_empty.any():
                vectors[is_empty] = model.empty_title()
            news.append(vectors)
            users.append(users_BE)
            scores.append(scores_K[offsets[:-1, None] + rows.positions])
        return ClicksSaid(tensors(news), tensors(users), tensors(scores))
