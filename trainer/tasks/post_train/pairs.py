"""Post-training (step 1) and its distillation (stage I): which title belongs to this body?

Shapes: B samples, C = 1 + N titles a sample (its own first), U distinct titles of the micro-batch,
L tokens, E news width, M teachers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.ahead import ReadAhead
from shards.stream import BatchRows
from trainer.batch import Batch, as_tensor
from trainer.config.distill import LossConfig
from trainer.losses.contrastive import contrastive, in_batch_scores, in_batch_targets
from trainer.losses.embedding import weighted_distance
from trainer.models.news_encoder import NewsEncoder
from trainer.models.projection import TeacherProjections
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
from trainer.tasks.left_out import damaged
from trainer.tasks.post_train.task import PairConfig
from trainer.tasks.post_train.teachers import article_negatives
from trainer.tasks.sources import Sources
from trainer.tasks.texts import (
    Texts,
    count_texts,
    encode_texts,
    grouping_of,
    lay_out_texts,
)
from trainer.teacher_server.signals import TextRows, TextSignals, TextsSaid


@dataclass(frozen=True)
class Pairs(Batch):
    """B bodies with their titles."""

    titles: Texts
    """The U distinct titles."""
    bodies: Texts
    title_index: Tensor
    """int64 [B, C] into U, the own title first; [B, 1] if the other titles of the batch are the
    negatives."""
    teachers: Batch | None = None
    """Outputs of the teachers, or inputs of live ones; see :meth:`TeacherSignals.say`."""


class PostTrainData(TaskData):
    """Bodies with their own titles and N negatives.

    Negatives are drawn from the whole corpus, or from the window of the order that contains the
    body.
    """

    def __init__(
        self,
        config: PairConfig,
        sources: Sources,
        signals: TextSignals | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        articles, tokens, data = sources.articles, sources.tokens, config.data
        self.grouping = grouping_of(config)
        self.titles = tokens.view(("title", data.max_title_tokens))
        self.bodies = tokens.view(("body", data.max_body_tokens))
        self.pad_to_max = data.pad_to_max
        self.in_batch = config.takes_whole_batch
        self.signals = signals
        self.notes = [*damaged(tokens.skipped_rows).notes, *notes]
        self.negatives = article_negatives(config, sources)
        self.order = self.negatives.order
        if not self.in_batch and data.negatives_from == "corpus":
            tokens.reader.keep("title")
        said = [] if signals is None else list(signals.columns)
        self.fingerprint = data_fingerprint(
            articles=articles, tokens=tokens.reader, **numbered("teacher_column", said)
        )
        self.ahead = ReadAhead(self.order, [tokens.reader, *said], data.fetch_ahead)

    def collate(self, batch: BatchRows) -> MicroBatch:
        """Make one micro-batch; its batch is :class:`Pairs`."""
        self.ahead.at(batch.position)
        titles_BC = batch.rows[:, None]
        if not self.in_batch:
            negatives_BN = self.negatives.of(batch.rows, batch.epochs)
            titles_BC = np.concatenate([titles_BC, negatives_BN], axis=1)
        titles_U, index = np.unique(titles_BC, return_inverse=True)
        lay_out = partial(lay_out_texts, pad_to_max=self.pad_to_max, grouping=self.grouping)
        titles = lay_out(self.titles, titles_U, most_texts=titles_BC.size)
        bodies = lay_out(self.bodies, batch.rows, most_texts=len(batch))
        said = None
        if self.signals is not None:
            said = self.signals.read(TextRows(titles_U, batch.rows, batch.epochs))
        pairs = Pairs(titles, bodies, as_tensor(index.reshape(titles_BC.shape)), said)
        return MicroBatch(pairs, count_texts(titles, bodies))


class PostTrainModule(nn.Module):
    """Cross-entropy of the own title among 1 + N titles, scored by dot product with the body.

    With ``in_batch_negatives``, the other titles of the global batch are the negatives; the titles
    of the other ranks are gathered with their gradients, so that the loss does not depend on the
    number of ranks.
    """

    def __init__(self, model: NewsEncoder, *, in_batch_negatives: bool = False) -> None:
        super().__init__()
        self.model = model
        self.in_batch_negatives = in_batch_negatives

    def forward(self, batch: Pairs) -> StepOutput:
        """Compute the losses of one micro-batch."""
        titles_UE, bodies_BE = encode_pairs(self.model, batch)
        target_B = None
        if self.in_batch_negatives:
            own_BE = titles_UE[batch.title_index[:, 0]]
            scores_BC, target_B = _scores_within_batch(bodies_BE, own_BE)
        else:
            scores_BC = pair_scores(bodies_BE, titles_UE, batch.title_index)
        return step_output(
            {"target": contrastive(scores_BC, target_B)},
            {"target": 1.0},
            {"accuracy": accuracy(scores_BC, target_B)},
            len(bodies_BE),
        )


class PostTrainDistillModule(nn.Module):
    """Stage I: the student's own task, the teachers' soft label, and their projected vectors.

    Without ``teacher_dims`` there are no teacher vectors, hence neither projections nor the
    embedding loss; the batch then contains the teachers' logits.
    """

    def __init__(
        self,
        model: NewsEncoder,
        teacher_dims: list[int],
        loss: LossConfig,
        teachers: Sequence[str] | None = None,
        say: Callable[[Batch], TextsSaid] | None = None,
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
        self.projections = TeacherProjections(teacher_dims, model.config.news_dim)
        self.loss = loss
        self.teachers = unnamed(teacher_dims) if teachers is None else list(teachers)
        self.say = say

    def forward(self, batch: Pairs) -> StepOutput:
        """Compute the losses of one micro-batch with the teachers' outputs."""
        assert batch.teachers is not None
        said = batch.teachers if self.say is None else self.say(batch.teachers)
        assert isinstance(said, TextsSaid)
        index_BC = batch.title_index
        titles_UE, bodies_BE = encode_pairs(self.model, batch)
        scores_BC = pair_scores(bodies_BE, titles_UE, index_BC)
        title_teachers = [vectors_UE.float() for vectors_UE in said.titles]
        body_teachers = [vectors_BE.float() for vectors_BE in said.bodies]
        if said.scores:
            teacher_scores = [stored_BC.float() for stored_BC in said.scores]
        else:
            both = zip(body_teachers, title_teachers, strict=True)
            teacher_scores = [pair_scores(body, title, index_BC) for body, title in both]
        weights_MB, terms = label_terms(scores_BC, torch.stack(teacher_scores), self.loss)
        if title_teachers:
            title_errors_MU = teacher_errors(titles_UE, self.projections(title_teachers))
            body_errors_MB = teacher_errors(bodies_BE, self.projections(body_teachers))
            terms["embedding"] = weighted_distance(
                title_errors_MU[:, index_BC], weights_MB
            ) + weighted_distance(body_errors_MB[:, :, None], weights_MB)
        report = {"accuracy": accuracy(scores_BC), **weight_report(weights_MB, self.teachers)}
        return step_output(
            terms,
            loss_weights(self.loss),
            report,
            len(bodies_BE),
            weight_histograms(weights_MB, self.teachers),
        )


def encode_pairs(model: NewsEncoder, batch: Pairs) -> tuple[Tensor, Tensor]:
    """Return vectors of the distinct titles [U, E] and of the bodies [B, E]."""
    return encode_texts(model, batch.titles), encode_texts(model, batch.bodies)


def pair_scores(bodies_BE: Tensor, titles_UE: Tensor, index_BC: Tensor) -> Tensor:
    """Return dot products of every body with its titles, [B, C]."""
    return torch.einsum("be,bce->bc", bodies_BE, titles_UE[index_BC])


def _scores_within_batch(bodies_BE: Tensor, titles_BE: Tensor) -> tuple[Tensor, Tensor]:
    """Score bodies against all G titles of the global batch.

    Returns the scores [B, G] and the places [B] of the own titles.
    """
    num_local, offset = len(bodies_BE), 0
    titles_GE = titles_BE
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from torch.distributed.nn.functional import all_gather

        offset = dist.get_rank() * num_local
        titles_GE = torch.cat(all_gather(titles_BE))
    return (
        in_batch_scores(bodies_BE, titles_GE),
        in_batch_targets(num_local, offset, bodies_BE.device),
    )
