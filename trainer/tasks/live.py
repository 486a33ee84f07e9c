"""Live teachers in memory with the student: the tests' oracle and the benchmarks' baseline.

Both halves of the task take part. The data half lays out the texts that each teacher reads of a
micro-batch, with the teacher's own tokens and lengths. The module half (``say``) computes the
teachers' outputs, on the device of the batch and without gradients. The teachers do not belong to
any module: optimizer, DDP, ZeRO, checkpoints and exports do not see them.

Shapes: U distinct titles, B samples, C candidates, H history slots, A articles that a teacher
reads, E news width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shards.clicks import ClickColumn
from shards.columns import ColumnReader
from shards.reader import ShardSet
from shards.texts import TextView
from trainer.batch import Batch, as_tensor
from trainer.evaluate.encode import autocast, inference
from trainer.export.folder import Export, load_export
from trainer.models.recommender import Recommender
from trainer.tasks.texts import (
    NO_GROUPING,
    Grouping,
    SubBatch,
    Texts,
    encode_texts,
    lay_out_texts,
)
from trainer.teacher_server.signals import ClickRows, ClicksSaid, TextRows, TextsSaid

_GROUPING = Grouping(16384)


@dataclass(frozen=True)
class TextsAsked(Batch):
    """Inputs of M teachers in stage I, each with its own tokens."""

    titles: tuple[Texts, ...]
    bodies: tuple[Texts, ...]


@dataclass(frozen=True)
class TeacherClicks(Batch):
    """Inputs of one teacher in stage II."""

    articles: Texts
    """The A articles of its histories, of the candidates and of the student's news."""
    empty: Texts | None
    """The title of padding alone, article A; None if it is not needed."""
    news_index: Tensor
    """int64 [U] into the articles."""
    history_index: Tensor
    """int64 [B, H] into the articles; any value in empty slots."""
    history_mask: Tensor
    """bool [B, H], true in slots with a click."""
    candidate_index: Tensor
    """int64 [B, C] into the articles."""


@dataclass(frozen=True)
class ClicksAsked(Batch):
    """Inputs of M teachers in stage II."""

    teachers: tuple[TeacherClicks, ...]


class LiveTeacher:
    """One teacher on both sides: its texts, and its model."""

    def __init__(self, folder: str, articles: ShardSet) -> None:
        self.export: Export = load_export(folder)
        self.tokens = self.export.tokens(articles)
        self.news = self.export.news_texts(self.tokens)
        self.model = self.export.load_model()

    def lay_out(self, texts: TextView, rows_U: np.ndarray) -> Texts:
        """Lay out texts of articles as the teacher was trained to read them."""
        pad_to_max = bool(self.export.info["pad_to_max"])
        grouping = NO_GROUPING if pad_to_max else _GROUPING
        return lay_out_texts(
            texts, rows_U, pad_to_max=pad_to_max, grouping=grouping, most_texts=len(rows_U)
        )

    def empty_title(self) -> Texts:
        """Return a title of padding alone, which the released code reads as a title."""
        ids = torch.full((1, self.news.max_tokens), self.tokens.pad_id)
        return Texts((SubBatch(ids, torch.ones_like(ids)),))

    def encode(self, texts: Texts) -> Tensor:
        """Return vectors [U, E] of texts; the first call moves the model to their device."""
        nn.Module.to(self.model, texts.parts[0].inputs.device)
        return encode_texts(getattr(self.model, "encode_news", self.model), texts)

    def clicks(self, asked: TeacherClicks) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors of news [U, E] and users [B, E], and scores [B, C]."""
        assert isinstance(self.model, Recommender)
        vectors_AE = self.encode(asked.articles)
        if asked.empty is not None:
            vectors_AE = torch.cat([vectors_AE, self.encode(asked.empty)])
        # As the released code uses its teachers: learned padding stays.
        unmasked = False if self.model.config.history_padding == "learned" else None
        history_BHE = vectors_AE[asked.history_index]
        users_BE = self.model.encode_users(history_BHE, asked.history_mask, unmasked)
        scores_BC = self.model.score(vectors_AE[asked.candidate_index], users_BE)
        return vectors_AE[asked.news_index], users_BE, scores_BC


@contextmanager
def _computing(teachers: Sequence[LiveTeacher], texts: Texts) -> Iterator[None]:
    """Disable gradients and dropout, and compute in float32 whatever the student's precision."""
    with ExitStack() as stack:
        for teacher in teachers:
            stack.enter_context(inference(teacher.model))
        stack.enter_context(autocast(texts.parts[0].inputs.device, "fp32"))
        yield


class LiveTextSignals:
    """Stage I signals: every teacher encodes the batch's titles and bodies."""

    columns: tuple[ColumnReader, ...] = ()
    """Empty: live teachers do not read columns."""

    def __init__(self, articles: ShardSet, teachers: Sequence[str]) -> None:
        self.teachers = [LiveTeacher(teacher, articles) for teacher in teachers]
        self.bodies = [one.export.body_texts(one.tokens) for one in self.teachers]
        self.dims = [int(one.model.config.news_dim) for one in self.teachers]

    def read(self, rows: TextRows) -> TextsAsked:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        both = zip(self.teachers, self.bodies, strict=True)
        return TextsAsked(
            tuple(teacher.lay_out(teacher.news, rows.titles) for teacher in self.teachers),
            tuple(teacher.lay_out(bodies, rows.bodies) for teacher, bodies in both),
        )

    def say(self, asked: TextsAsked) -> TextsSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.say`."""
        with _computing(self.teachers, asked.titles[0]):
            titles = zip(self.teachers, asked.titles, strict=True)
            bodies = zip(self.teachers, asked.bodies, strict=True)
            return TextsSaid(
                tuple(teacher.encode(texts) for teacher, texts in titles),
                tuple(teacher.encode(texts) for teacher, texts in bodies),
            )


class LiveClickSignals:
    """Stage II signals: every teacher encodes the batch's titles and scores its impressions."""

    columns: tuple[ColumnReader, ...] = ()
    """Empty: live teachers do not read columns."""

    def __init__(self, articles: ShardSet, impressions: ShardSet, teachers: Sequence[str]) -> None:
        self.teachers = [LiveTeacher(teacher, articles) for teacher in teachers]
        self.dims = [int(one.model.config.news_dim) for one in self.teachers]
        self.column = ClickColumn.open(impressions, articles.num_rows)

    def read(self, rows: ClickRows) -> ClicksAsked:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        candidates_K, offsets = self.column.candidates(rows.impressions)
        candidates_BC = candidates_K[offsets[:-1, None] + rows.positions]
        is_empty = rows.news < 0
        asked = []
        for teacher in self.teachers:
            length = teacher.export.info["history_length"]
            history_BH, mask_BH = self.column.history(rows.impressions, length)
            named = (history_BH[mask_BH], candidates_BC.ravel(), rows.news[~is_empty])
            articles_A = np.unique(np.concatenate(named))
            news_U = np.searchsorted(articles_A, rows.news)
            history_BH = np.where(mask_BH, np.searchsorted(articles_A, history_BH), 0)
            asked.append(
                TeacherClicks(
                    teacher.lay_out(teacher.news, articles_A),
                    teacher.empty_title() if is_empty.any() else None,
                    as_tensor(np.where(is_empty, len(articles_A), news_U)),
                    as_tensor(history_BH),
                    as_tensor(mask_BH),
                    as_tensor(np.searchsorted(articles_A, candidates_BC)),
                )
            )
        return ClicksAsked(tuple(asked))

    def say(self, asked: ClicksAsked) -> ClicksSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.say`."""
        with _computing(self.teachers, asked.teachers[0].articles):
            both = zip(self.teachers, asked.teachers, strict=True)
            said = [teacher.clicks(of_one) for teacher, of_one in both]
        return ClicksSaid(*zip(*said, strict=True))
