"""Finetuning on clicks (step 3) and its distillation (stage II): which candidate was clicked?

Shapes: B clicks, H history slots, C = 1 + S candidates (the clicked one first), U distinct titles
of the micro-batch, L tokens, E news width, M teachers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shards.click_batch import ClickBatch, ClickRule, click_order, read_clicks
from shards.sharing import Sharing, SharingChoice, measure_sharing
from shards.stream import BatchRows
from shards.texts import TextView
from shards.tokens import TokenColumn
from trainer.batch import Batch, as_tensor
from trainer.config.clicks import ClickConfig
from trainer.frozen.states import StateView
from trainer.frozen.texts import frozen_texts
from trainer.losses.contrastive import contrastive
from trainer.losses.embedding import weighted_distance
from trainer.models.projection import TeacherProjections
from trainer.models.recommender import Recommender
from trainer.tasks.base import (
    MicroBatch,
    StepOutput,
    TaskData,
    accuracy,
    data_fingerprint,
    numbered,
    step_output,
)
from trainer.tasks.distill import (
    label_terms,
    loss_weights,
    teacher_errors,
    unnamed,
    weight_histograms,
    weight_report,
)
from trainer.tasks.finetune.left_out import training_period
from trainer.tasks.finetune.shared_titles import Share, encode_shared
from trainer.tasks.finetune.sources import ClickSources
from trainer.tasks.finetune.task import ClickLossConfig
from trainer.tasks.texts import (
    Texts,
    count_texts,
    grouping_of,
    lay_out_texts,
)
from trainer.teacher_server.signals import ClickRows, ClickSignals, ClicksSaid


@dataclass(frozen=True)
class Clicks(Batch):
    """B clicks over the U distinct titles that they name."""

    news: Texts
    history_index: Tensor
    """int64 [B, H] into U; any value in empty slots."""
    history_mask: Tensor
    """bool [B, H], true in slots with a click."""
    candidate_index: Tensor
    """int64 [B, C] into U, the clicked one first."""
    teachers: Batch | None = None
    """Outputs of the teachers, or inputs of live ones; see :meth:`TeacherSignals.say`."""


class ClickData(TaskData):
    """Clicks with the user's history and S unclicked candidates of the same impression.

    Every distinct title of a micro-batch is encoded once. Empty history slots are not encoded,
    unless ``empty_slots`` asks for it (as in the released code): then slot ``U - 1`` is the empty
    title. With ``states``, titles are hidden states of frozen layers, not token ids. If ranks share
    titles (``data.share_titles``), the same holds for the micro-batches of all ranks together: each
    rank encodes a share of their titles, see :mod:`trainer.tasks.finetune.shared_titles`.
    """

    def __init__(
        self,
        config: ClickConfig,
        sources: ClickSources,
        signals: ClickSignals | None = None,
        states: StateView | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        clicks, tokens, data, seed = (
            sources.clicks, sources.tokens, config.data, config.run.seed,
        )  # fmt: skip
        self.empty_slots = config.encodes_empty_slots is not None
        self.grouping = grouping_of(config, pads_matter=self.empty_slots)
        self.clicks = clicks
        self.pad_id = tokens.pad_id
        self.config = data
        self.signals = signals
        self.rule = ClickRule(seed, data.num_negatives, config.clicks_read, data.static_negatives)
        left_out = sources.left_out()
        self.notes = [*left_out.notes, *notes]
        self.order = click_order(clicks, seed, data.window_shards, data.user_block, left_out.units)
        self.news = news_texts(config, tokens)
        self._choices: dict[tuple[int, int, int], SharingChoice] = {}
        said = [] if signals is None else list(signals.columns)
        self.states = states
        period = training_period(data)
        self.fingerprint = data_fingerprint(
            clicks=sources.impressions,
            tokens=tokens.reader,
            **({"clicks_period": period} if period.is_bounded else {}),
            **numbered("teacher_column", said),
            **({} if states is None else {"frozen_states": states.reader}),
        )

    def collate(self, batch: BatchRows) -> MicroBatch:
        """Make one micro-batch; its batch is :class:`Clicks`."""
        clicks, share = self._read(batch)
        if not (self.config.pad_to_max or self.empty_slots):
            clicks = clicks.trimmed()
        news_U, index = np.unique(clicks.named(), return_inverse=True)
        news = lay_out_texts(
            self.states or self.news,
            news_U if share is None else share.rows_S,
            pad_to_max=self.config.pad_to_max,
            grouping=self.grouping,
            most_texts=len(clicks) * self.rule.history_length + clicks.candidates_BC.size,
        )
        if share is not None:
            news = dataclasses.replace(news, shared=as_tensor(share.places(news_U)))
        if self.empty_slots:  # then there is neither grouping nor sharing
            news_U = np.append(news_U, -1)
            news = news.with_empty_text(self.pad_id)
        said = None
        if self.signals is not None:
            said = self.signals.read(ClickRows(news_U, clicks.impression_B, clicks.positions_BC))
        history_BH, candidates_BC = _slots(clicks, index, empty=len(news_U) - 1)
        made = Clicks(
            news,
            as_tensor(history_BH),
            as_tensor(clicks.mask_BH),
            as_tensor(candidates_BC),
            said,
        )
        return MicroBatch(made, count_texts(news))

    def sharing(self, micro_batch: int, global_batch: int, ranks: int) -> Sharing:
        """Measure the distinct titles of a forward pass by :func:`measure_sharing`."""
        return measure_sharing(self.order, self.clicks, self.rule, micro_batch, global_batch, ranks)

    def sharing_choice(
        self, micro_batch: int, global_batch: int, ranks: int
    ) -> SharingChoice | None:
        """Return the choice of ``data.share_titles auto``; None if there is nothing to choose.

        The choice is computed once.
        """
        if self.config.share_titles != "auto" or ranks == 1:
            return None
        key = (micro_batch, global_batch, ranks)
        if key not in self._choices:
            self._choices[key] = SharingChoice(self.sharing(*key))
        return self._choices[key]

    def _read(self, batch: BatchRows) -> tuple[ClickBatch, Share | None]:
        """Read this rank's clicks, and its share of the titles that all ranks name."""
        if batch.peers is None or not self._shares_titles(batch):
            return read_clicks(self.clicks, self.rule, batch.rows, batch.epochs), None
        rows_RB, epochs_RB, rank = batch.peers.rows, batch.peers.epochs, batch.peers.rank
        of_all = read_clicks(self.clicks, self.rule, rows_RB.ravel(), epochs_RB.ravel())
        share = Share.of(of_all.named(), self.news.lengths, len(rows_RB), rank)
        return of_all.part(rank * len(batch), len(batch)), share

    def _shares_titles(self, batch: BatchRows) -> bool:
        """Return whether ranks share titles; every rank gets the same answer."""
        ranks = 1 if batch.peers is None else len(batch.peers.rows)
        global_batch = batch.position.global_batch or ranks * len(batch)
        choice = self.sharing_choice(len(batch), global_batch, ranks)
        return self.config.share_titles == "all" if choice is None else choice.is_shared


def news_texts(config: ClickConfig, tokens: TokenColumn) -> TextView:
    """Return a view of the texts that a run reads of articles."""
    return tokens.view(*config.data.news_parts)


def new_states(
    config: ClickConfig,
    recommender: Recommender,
    tokens: TokenColumn,
    tick: Callable[[], object],
) -> StateView | None:
    """Return stored hidden states of the frozen layers; None without ``model.frozen_states``.

    Missing states are computed and stored first.
    """
    if config.model.frozen_states == "off":
        return None
    return frozen_texts(config, recommender.news_encoder, news_texts(config, tokens), tick=tick)


def _slots(clicks: ClickBatch, index: np.ndarray, empty: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the text of each history slot, int64[B, H], and of each candidate, int64[B, C].

    Args:
        clicks: B clicks.
        index: int64[k], the text of each article in :meth:`ClickBatch.named`.
        empty: Value of empty slots.
    """
    history_BH = np.full(clicks.history_BH.shape, empty, dtype=np.int64)
    num_history = len(index) - clicks.candidates_BC.size
    history_BH[clicks.mask_BH] = index[:num_history]
    return history_BH, index[num_history:].reshape(clicks.candidates_BC.shape)


class FinetuneModule(nn.Module):
    """Cross-entropy of the clicked candidate among 1 + S of its impression (PLM-NR)."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Clicks) -> StepOutput:
        """Compute the losses of one micro-batch."""
        _, _, scores_BC = score_clicks(self.model, batch)
        return step_output(
            {"target": contrastive(scores_BC)},
            {"target": 1.0},
            {"accuracy": accuracy(scores_BC)},
            len(scores_BC),
        )


class FinetuneDistillModule(nn.Module):
    """Stage II: the clicks, the teachers' soft label, and their projected news and user vectors."""

    def __init__(
        self,
        model: Recommender,
        teacher_dims: list[int],
        loss: ClickLossConfig,
        teachers: Sequence[str] | None = None,
        say: Callable[[Batch], ClicksSaid] | None = None,
    ) -> None:
        """Create the projections.

        Args:
            model: The student.
            teacher_dims: Widths of the teachers' vectors.
            loss: Weights and temperature.
            teachers: Names of the teachers in reports.
            say: Computes the teachers' outputs from the batch; None if the batch contains them.
        """
        super().__init__()
        self.model = model
        width = model.config.news_dim
        self.news_projections = TeacherProjections(teacher_dims, width)
        self.user_projections = (
            self.news_projections
            if loss.shared_projection
            else TeacherProjections(teacher_dims, width)
        )
        self.loss = loss
        self.teachers = unnamed(teacher_dims) if teachers is None else list(teachers)
        self.say = say

    def forward(self, batch: Clicks) -> StepOutput:
        """Compute the losses of one micro-batch with the teachers' outputs."""
        assert batch.teachers is not None
        said = batch.teachers if self.say is None else self.say(batch.teachers)
        assert isinstance(said, ClicksSaid)
        news_UE, users_BE, scores_BC = score_clicks(self.model, batch)
        teacher_scores_MBC = torch.stack([stored_BC.float() for stored_BC in said.scores])
        weights_MB, terms = label_terms(scores_BC, teacher_scores_MBC, self.loss)
        news = [vectors_UE.float() for vectors_UE in said.news]
        users = [vectors_BE.float() for vectors_BE in said.users]
        news_errors_MU = teacher_errors(news_UE, self.news_projections(news))
        user_errors_MB = teacher_errors(users_BE, self.user_projections(users))
        slots_BV = torch.cat([batch.history_index, batch.candidate_index], dim=1)
        is_candidate_BC = torch.ones_like(batch.candidate_index, dtype=torch.bool)
        counted_BV = torch.cat([batch.history_mask, is_candidate_BC], dim=1)
        terms["embedding"] = weighted_distance(
            news_errors_MU[:, slots_BV], weights_MB, None if self.loss.padded_slots else counted_BV
        ) + weighted_distance(user_errors_MB[:, :, None], weights_MB)
        report = {"accuracy": accuracy(scores_BC), **weight_report(weights_MB, self.teachers)}
        return step_output(
            terms,
            loss_weights(self.loss),
            report,
            len(scores_BC),
            weight_histograms(weights_MB, self.teachers),
        )


def score_clicks(model: Recommender, batch: Clicks) -> tuple[Tensor, Tensor, Tensor]:
    """Compute news vectors [U, E], user vectors [B, E] and candidate scores [B, C]."""
    encode = model.encode_states if batch.news.are_states else model.encode_news
    news_UE = encode_shared(encode, batch.news)
    users_BE = model.encode_users(news_UE[batch.history_index], batch.history_mask)
    scores_BC = model.score(news_UE[batch.candidate_index], users_BE)
    return news_UE, users_BE, scores_BC
