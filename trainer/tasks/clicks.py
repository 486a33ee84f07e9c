"""Finetuning on clicks (step 3) and its distillation (stage II): which candidate was clicked?

Shapes: B clicks, H history slots, C = 1 + S candidates (the clicked one first), U distinct titles
of the micro-batch, L tokens, E news width, M teachers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from shards.clicks import ClickColumn
from shards.order import EpochOrder
from shards.reader import ShardSet
from shards.stream import BatchRows
from shards.tokens import TokenColumn
from trainer.config.schema import DataConfig, LossConfig
from trainer.losses.contrastive import contrastive
from trainer.losses.embedding import weighted_distance
from trainer.models import Recommender
from trainer.models.projection import TeacherProjections
from trainer.tasks.base import (
    Batch,
    StepOutput,
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
from trainer.tasks.left_out import clicks_left_out, training_period
from trainer.tasks.texts import (
    NO_GROUPING,
    Grouping,
    collate_texts,
    encode_texts,
    reported,
)
from trainer.teacher_server.signals import TeacherSignals


class ClickData:
    """Clicks with the user's history and S unclicked candidates of the same impression.

    Every distinct title of a micro-batch is encoded once, and empty history slots not at all,
    unless ``empty_slots`` asks for them (the released code's way): then slot ``U - 1`` is the
    empty title.
    """

    def __init__(
        self,
        impressions: ShardSet,
        clicks: ClickColumn,
        tokens: TokenColumn,
        config: DataConfig,
        seed: int,
        *,
        empty_slots: bool = False,
        signals: TeacherSignals | None = None,
        grouping: Grouping = NO_GROUPING,
    ) -> None:
        self.grouping = grouping
        self.clicks = clicks
        self.tokens = tokens
        self.news = tokens.view(("title", config.max_title_tokens))
        self.config = config
        self.seed = seed
        self.empty_slots = empty_slots
        self.signals = signals
        left_out = clicks_left_out(clicks, tokens.skipped_rows, config)
        self.notes = left_out.notes
        self.order = EpochOrder(
            clicks.clicks_per_shard,
            impressions.fingerprint,
            seed,
            config.window_shards,
            left_out.units,
        )
        said = [] if signals is None else list(signals.columns)
        period = training_period(config)
        self.fingerprint = data_fingerprint(
            clicks=impressions,
            tokens=tokens.reader,
            **({"clicks_period": period} if period.is_bounded else {}),
            **numbered("teacher_column", said),
        )

    def collate(self, batch: BatchRows) -> Batch:
        """Arrays of one micro-batch.

        Returns:
            The U titles as :func:`trainer.tasks.texts.collate_texts` lays them out;
            ``history_index`` and ``history_mask`` [B, H]; ``candidate_index`` [B, C] into U with
            the clicked one first; with teachers also ``teacher.m.news`` [U, E], ``teacher.m.user``
            [B, E] and ``teacher.m.scores`` [B, C].
        """
        config = self.config
        impression_B, position_B = self.clicks.click(batch.rows)
        epochs = np.zeros_like(batch.epochs) if config.static_negatives else batch.epochs
        negative_BS = self.clicks.sample_negatives(
            self.seed, batch.rows, epochs, config.num_negatives
        )
        positions_BC = np.concatenate([position_B[:, None], negative_BS], axis=1)
        values, offsets = self.clicks.candidates(impression_B)
        candidates_BC = values[offsets[:-1, None] + positions_BC]
        history_BH, mask_BH = self.clicks.history(impression_B, config.history_length)
        if not (config.pad_to_max or self.empty_slots):
            longest = max(int(mask_BH.sum(axis=1).max()), 1)
            history_BH, mask_BH = history_BH[:, -longest:], mask_BH[:, -longest:]
        arrays = self._titles(history_BH, mask_BH, candidates_BC)
        news_U = arrays.pop("news_rows")
        if self.signals is not None:
            arrays |= self.signals.read({"news": news_U, "user": impression_B}, positions_BC)
        arrays |= reported(arrays)
        return arrays

    def _titles(
        self, history_BH: np.ndarray, mask_BH: np.ndarray, candidates_BC: np.ndarray
    ) -> Batch:
        config = self.config
        used = np.concatenate([history_BH[mask_BH], candidates_BC.ravel()])
        news_U, index = np.unique(used, return_inverse=True)
        num_history = len(used) - candidates_BC.size
        titles = collate_texts(
            self.news,
            "title",
            news_U,
            pad_to_max=config.pad_to_max,
            grouping=self.grouping,
            most_texts=len(history_BH) * config.history_length + candidates_BC.size,
        )
        if self.empty_slots:  # then there is no grouping
            news_U = np.append(news_U, -1)
            ids, mask = titles["title_ids"], titles["title_mask"]
            titles["title_ids"] = np.vstack([ids, np.full_like(ids[:1], self.tokens.pad_id)])
            titles["title_mask"] = np.vstack([mask, np.ones_like(mask[:1])])
        history_index = np.full(history_BH.shape, len(news_U) - 1, dtype=np.int64)
        history_index[mask_BH] = index[:num_history]
        return {
            "news_rows": news_U,
            **titles,
            "history_index": history_index,
            "history_mask": mask_BH,
            "candidate_index": index[num_history:].reshape(candidates_BC.shape),
        }


class FinetuneTask(nn.Module):
    """Cross-entropy of the clicked candidate among 1 + S of its impression (PLM-NR)."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        """Losses of one micro-batch of :meth:`ClickData.collate`."""
        _, _, scores_BC = score_clicks(self.model, batch)
        return step_output(
            {"target": contrastive(scores_BC)},
            {"target": 1.0},
            {"accuracy": accuracy(scores_BC)},
            len(scores_BC),
        )


class FinetuneDistillTask(nn.Module):
    """Stage II: the clicks, the teachers' soft label, and their projected news and user vectors."""

    def __init__(
        self,
        model: Recommender,
        teacher_dims: list[int],
        loss: LossConfig,
        teachers: Sequence[str] | None = None,
    ) -> None:
        """Make the projections; ``teachers`` are names for what is reported."""
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
        self.num_teachers = len(teacher_dims)
        self.teachers = unnamed(teacher_dims) if teachers is None else list(teachers)

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        """Losses of one micro-batch of :meth:`ClickData.collate` with signals."""
        news_UE, users_BE, scores_BC = score_clicks(self.model, batch)
        teachers = range(self.num_teachers)
        teacher_scores_MBC = torch.stack([batch[f"teacher.{m}.scores"].float() for m in teachers])
        weights_MB, terms = label_terms(scores_BC, teacher_scores_MBC, self.loss)
        news = [batch[f"teacher.{m}.news"].float() for m in teachers]
        users = [batch[f"teacher.{m}.user"].float() for m in teachers]
        news_errors_MU = teacher_errors(news_UE, self.news_projections(news))
        user_errors_MB = teacher_errors(users_BE, self.user_projections(users))
        slots_BV = torch.cat([batch["history_index"], batch["candidate_index"]], dim=1)
        counted_BV = torch.cat(
            [batch["history_mask"], torch.ones_like(batch["candidate_index"], dtype=torch.bool)],
            dim=1,
        )
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


def score_clicks(model: Recommender, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """News vectors [U, E], user vectors [B, E] and candidate scores [B, C] of a micro-batch."""
    news_UE = encode_texts(model.encode_news, batch, "title")
    users_BE = model.encode_users(news_UE[batch["history_index"]], batch["history_mask"])
    scores_BC = model.score(news_UE[batch["candidate_index"]], users_BE)
    return news_UE, users_BE, scores_BC
