"""Both halves of masked language modelling: texts with masked tokens, and the loss.

Shapes: n texts of a sub-batch, L tokens, D width of the language model, V vocabulary, K masked
tokens of a micro-batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from shards import pretrained
from shards.ahead import ReadAhead
from shards.clicks import ClickColumn
from shards.errors import DataError
from shards.order import keyed_draws
from shards.reader import ShardSet
from shards.stream import BatchRows
from shards.tokenizer import load_tokenizer
from trainer.batch import Batch, as_tensor
from trainer.config.bias import BIAS_KEY
from trainer.errors import ModelError
from trainer.losses.precision import widen
from trainer.models.backbone import Backbone
from trainer.models.build import RANDOM
from trainer.models.strict import save_weights
from trainer.tasks.base import MicroBatch, StepOutput, TaskData, data_fingerprint, step_output
from trainer.tasks.finetune.sources import open_impressions
from trainer.tasks.left_out import damaged
from trainer.tasks.mlm.task import MlmConfig
from trainer.tasks.sources import Sources, article_order
from trainer.tasks.texts import Texts, count_texts, grouping_of, lay_out_texts

_ROWS = 65_536
"""Number of impressions that are searched at a time."""


@dataclass(frozen=True)
class MaskedTexts(Batch):
    """Texts with masked tokens."""

    texts: Texts
    """Texts as the backbone reads them."""
    places: tuple[Tensor, ...]
    """For each sub-batch int64 [k]: places of the masked tokens in its n x L tokens."""
    wanted: Tensor
    """int64 [K], original ids of the masked tokens, sub-batch after sub-batch."""


@dataclass(frozen=True)
class Mask:
    """Rule for which tokens are predicted, and what replaces them."""

    seed: int
    share: float
    mask_id: int
    special_ids: np.ndarray
    """int64[s], ids that are never masked: those that begin, end or pad a text."""
    ordinary_ids: np.ndarray
    """int64[v], ids that may replace a token."""

    def of(self, ids_L: np.ndarray, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask one text.

        Args:
            ids_L: int64[L], without padding.
            row: Row of the article, which determines the mask together with the epoch.
            epoch: Epoch, counted from 0.

        Returns:
            Places int64[k] of the tokens to predict, and the ids int64[k] that replace them.
        """
        usable = np.flatnonzero(~np.isin(ids_L, self.special_ids))
        count = min(len(usable), max(1, round(self.share * len(usable))))
        draws = keyed_draws(["mlm", self.seed, epoch, row], len(usable) + 2 * count)
        order = np.argsort(draws[: len(usable)], kind="stable")
        places = np.sort(usable[order[:count]])
        kind, other = draws[len(usable) : len(usable) + count], draws[len(usable) + count :]
        tenth = kind % np.uint64(10)  # a bias of less than 2^-60
        random = self.ordinary_ids[(other % np.uint64(len(self.ordinary_ids))).astype(np.int64)]
        ids = np.where(tenth < 8, self.mask_id, np.where(tenth == 8, random, ids_L[places]))
        return places, ids


class MlmData(TaskData):
    """Texts of articles in the order of the run, with some tokens masked."""

    def __init__(self, config: MlmConfig, sources: Sources, notes: Sequence[str] = ()) -> None:
        tokens, data, seed = sources.tokens, config.data, config.run.seed
        self.pad_to_max = data.pad_to_max
        self.grouping = grouping_of(config)
        self.texts = tokens.view(*config.texts[0])
        self.notes = [*damaged(tokens.skipped_rows).notes, *notes]
        lengths = self.texts.lengths(np.arange(sources.articles.num_rows))
        left_out = np.union1d(
            tokens.skipped_rows, np.flatnonzero(lengths <= tokens.num_special)
        ).astype(np.int64)
        if num_empty := len(left_out) - len(tokens.skipped_rows):
            self.notes.append(f"{num_empty:,} articles are left out: they have no such text")
        parts: dict[str, Any] = {"articles": sources.articles, "tokens": tokens.reader}
        if data.clicks is not None:
            clicks = open_impressions(config, data.clicks, sources.articles, "data.clicks")
            parts["clicks"] = clicks
            left_out = np.union1d(left_out, _unnamed(clicks, sources.articles))
            named = sources.articles.num_rows - len(left_out)
            self.notes.append(f"reading the {named:,} articles that {data.clicks} names")
        self.order = article_order(config, sources, left_out)
        self.fingerprint = data_fingerprint(**parts)
        tokenizer = load_tokenizer(tokens.tokenizer_dir)
        if tokenizer.mask_token_id is None:
            raise DataError(
                f"the tokenizer of {tokens.folder} has no mask token: tokenize with one that has"
            )
        special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
        ordinary = np.setdiff1d(np.arange(len(tokenizer)), special)
        kept = np.setdiff1d(special, [tokenizer.unk_token_id or 0])
        self.mask = Mask(seed, data.masked, int(tokenizer.mask_token_id), kept, ordinary)
        self.ahead = ReadAhead(self.order, [tokens.reader], data.fetch_ahead)

    def collate(self, batch: BatchRows) -> MicroBatch:
        """Make one micro-batch; its batch is :class:`MaskedTexts`."""
        self.ahead.at(batch.position)
        texts = lay_out_texts(
            self.texts,
            batch.rows,
            pad_to_max=self.pad_to_max,
            grouping=self.grouping,
            most_texts=len(batch),
        )
        counts = count_texts(texts)
        places, wanted = [], []
        starts = np.cumsum([0, *(len(part.inputs) for part in texts.parts)])
        where_U = np.arange(len(batch)) if texts.place is None else texts.place.numpy()
        for number, part in enumerate(texts.parts):
            ids_nL, lengths_n = part.inputs.numpy(), part.mask.numpy().sum(axis=1)
            found, before = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
            for i in np.flatnonzero((where_U >= starts[number]) & (where_U < starts[number + 1])):
                text = int(where_U[i] - starts[number])
                own_L = ids_nL[text, : lengths_n[text]]
                at, now = self.mask.of(own_L, int(batch.rows[i]), int(batch.epochs[i]))
                before.append(own_L[at])
                ids_nL[text, at] = now
                found.append(text * ids_nL.shape[1] + at)
            places.append(as_tensor(np.concatenate(found)))
            wanted.append(np.concatenate(before))
        return MicroBatch(
            MaskedTexts(texts, tuple(places), as_tensor(np.concatenate(wanted))), counts
        )


def _unnamed(impressions: ShardSet, articles: ShardSet) -> np.ndarray:
    """Return the articles that no impression names, int64[k] ascending."""
    clicks = ClickColumn.open(impressions, articles.num_rows)
    is_named = np.zeros(articles.num_rows, dtype=bool)
    for start in range(0, impressions.num_rows, _ROWS):
        rows = np.arange(start, min(start + _ROWS, impressions.num_rows))
        is_named[clicks.candidates(rows)[0]] = True
        is_named[clicks.reader.gather_ragged("history", rows)[0]] = True
    return np.flatnonzero(~is_named)


class MaskedLanguageModel(nn.Module):
    """A backbone with its family's own head, whose output weights are the word embeddings."""

    kind = "language_model"

    def __init__(self, backbone: Backbone, head: PreTrainedModel) -> None:
        """Join the backbone and the head.

        Args:
            backbone: The language model.
            head: Transformers' model for masked language modelling; its own language model is
                dropped.
        """
        super().__init__()
        self.backbone = backbone
        setattr(head, head.base_model_prefix, backbone.language_model)
        head.tie_weights()
        setattr(head, head.base_model_prefix, _Given())
        self.head = head

    def forward(self, states_KD: Tensor) -> Tensor:
        """Return scores [K, V] of the states of masked tokens."""
        scores_KV: Tensor = self.head(inputs_embeds=states_KD[None]).logits[0]
        return scores_KV

    def save_pretrained(self, folder: Path) -> None:
        """Write a folder in transformers' layout, with the head."""
        folder.mkdir(parents=True, exist_ok=True)
        whole = copy.copy(self.head)
        whole._modules = {**self.head._modules, self.head.base_model_prefix: None}
        whole._modules[self.head.base_model_prefix] = self.backbone.language_model
        config = copy.deepcopy(self.backbone.language_model.config)
        config.architectures = [type(self.head).__name__]
        config.save_pretrained(folder)
        tied = set(getattr(whole, "_tied_weights_keys", None) or ())
        weights = {name: value for name, value in whole.state_dict().items() if name not in tied}
        if self.backbone.rel_pos_bias is not None:
            weights[BIAS_KEY] = self.backbone.rel_pos_bias.weight
        save_weights(weights, folder / "model.safetensors")


class _Given(nn.Module):
    """Replacement of a language model whose states are already computed."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        """Return the given states."""
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def new_head(backbone: Backbone, name: str) -> PreTrainedModel:
    """Load a backbone's pre-trained head if its folder has one, else make a new head.

    Raises:
        ModelError: Transformers does not have such a head for the family.
    """
    config = copy.deepcopy(backbone.language_model.config)
    try:
        if name == RANDOM:
            return pretrained.new_model(config, is_masked=True)
        return pretrained.load_model(name, config, is_masked=True, dtype=torch.float32)[0]
    except DataError as error:
        raise ModelError(f"task mlm needs a head for masked language modelling: {error}") from error


class MlmModule(nn.Module):
    """Cross-entropy of a micro-batch's masked tokens, averaged over them."""

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedTexts) -> StepOutput:
        """Compute the losses of one micro-batch."""
        states = []
        for part, at_k in zip(batch.texts.parts, batch.places, strict=True):
            states_nLD = self.model.backbone(part.inputs, part.mask.bool())
            states.append(states_nLD.flatten(0, 1)[at_k])
        scores_KV = widen(self.model(torch.cat(states)))
        is_right_K = scores_KV.argmax(dim=1) == batch.wanted
        return step_output(
            {"target": F.cross_entropy(scores_KV, batch.wanted)},
            {"target": 1.0},
            {"accuracy": is_right_K.float().mean()},
            batch.texts.count,
        )
