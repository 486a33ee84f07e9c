"""Texts of a micro-batch on both sides: the data half lays them out, the model encodes them.

With a budget of tokens per forward pass, texts are sorted by length and cut into sub-batches, each
padded to its own longest text; their vectors are put back in order. Losses and gradients are those
of one batch. A text is its token ids, or hidden states from frozen layers. Shapes: U texts, L
tokens, D width of the language model, E news width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.length_groups import most_groups
from shards.texts import TextGroup, TextView
from trainer.batch import Batch, as_tensor
from trainer.config.schema import EncoderConfig, TrainConfig
from trainer.engine.deepspeed_file import read_deepspeed_file, stage_of
from trainer.frozen.states import StateGroup, StateView

Encode = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Grouping:
    """Rule for cutting texts into sub-batches.

    ZeRO-3 gathers the weights of a layer from all ranks whenever a rank computes the layer, so all
    ranks must call the encoder equally often. The number of calls is then a function of the
    configuration alone: the number for a micro-batch of longest texts, which suffices for any
    other.
    """

    batch_tokens: int = 0
    """Tokens per forward pass of the encoder, padding included; 0 does not group."""
    is_fixed: bool = False
    """Whether every micro-batch has the same number of sub-batches, whatever its texts."""


NO_GROUPING = Grouping()


def grouping_of(config: TrainConfig, *, pads_matter: bool = False) -> Grouping:
    """Return the grouping that a run may use; None if it may not group.

    A run may not group if a text's vector depends on its padded length, because other padding would
    give another result (``data.pad_to_max``, ``model.pooling_mask`` off).

    Args:
        config: The run.
        pads_matter: Whether padding takes part for another reason, such as encoded empty slots.
    """
    pads_matter |= config.data.pad_to_max
    if isinstance(config, EncoderConfig):
        pads_matter |= not config.model.pooling_mask
    if pads_matter or not config.data.batch_tokens:
        return NO_GROUPING
    deepspeed = config.run.deepspeed
    is_fixed = deepspeed is not None and stage_of(read_deepspeed_file(deepspeed)) == 3
    return Grouping(config.data.batch_tokens, is_fixed)


@dataclass(frozen=True)
class SubBatch(Batch):
    """Texts of similar lengths for one forward pass of the encoder."""

    inputs: Tensor
    """int64 [n, L] token ids, or [n, L, D] states from frozen layers, as stored."""
    mask: Tensor
    """int64 [n, L], 1 at tokens."""


@dataclass(frozen=True)
class Texts(Batch):
    """U texts, laid out for the encoder."""

    parts: tuple[SubBatch, ...]
    """The sub-batches."""
    place: Tensor | None = None
    """int64 [U], place of each text in the concatenated sub-batches; None for a single sub-batch in
    the order of the texts."""
    shared: Tensor | None = None
    """int64 [U], place of each text in the concatenated shares of all ranks
    (:mod:`trainer.tasks.finetune.shared_titles`); ``parts`` are then this rank's share. None if
    this rank encodes its own texts."""

    @property
    def are_states(self) -> bool:
        """Whether the encoder starts from states of frozen layers."""
        return self.parts[0].inputs.is_floating_point()

    @property
    def count(self) -> int:
        """Number of texts, U."""
        return len(self.parts[0].inputs if self.place is None else self.place)

    def with_empty_text(self, pad_id: int) -> "Texts":
        """Return the texts and one more, whose padding counts as tokens.

        This is the released code's empty title; only for texts in a single sub-batch.
        """
        ids, mask = self.parts[0].inputs, self.parts[0].mask
        ids = torch.cat([ids, torch.full_like(ids[:1], pad_id)])
        return Texts((SubBatch(ids, torch.cat([mask, torch.ones_like(mask[:1])])),))


@dataclass(frozen=True)
class TextCounts:
    """Amount of text in a micro-batch, for reports and plans."""

    texts: int = 0
    """Number of texts, each counted once."""
    tokens: int = 0
    """Number of tokens of these texts."""
    tokens_squared: int = 0
    """Sum of the squared lengths, with which the cost of attention grows."""
    rows: int = 0
    """Texts as laid out; a text that fills up a sub-batch is counted again."""
    row_tokens: int = 0
    """Tokens of these rows."""
    slots: int = 0
    """Token slots, padding included."""
    slots_squared: int = 0
    """Sum over the rows of their squared padded lengths."""

    @property
    def padding(self) -> float:
        """Share of the slots computed for nothing, 0 to 1: padding, and repeated texts."""
        return 1.0 - self.tokens / max(self.slots, 1)


def lay_out_texts(
    texts: TextView | StateView,
    rows_U: np.ndarray,
    *,
    pad_to_max: bool,
    grouping: Grouping,
    most_texts: int,
) -> Texts:
    """Lay out the texts of a micro-batch, as token ids or as stored states.

    Args:
        texts: Source of the texts, as token ids or as states.
        rows_U: Articles, int64[U].
        pad_to_max: Pad every text to ``texts.max_tokens``.
        grouping: Rule for cutting them into sub-batches.
        most_texts: Largest number of texts in a micro-batch of the run.
    """
    if not grouping.batch_tokens:
        if isinstance(texts, StateView):
            inputs, mask = texts.batch(rows_U)
        else:
            inputs, mask = texts.batch(rows_U, pad_to_max)
        return Texts((SubBatch(as_tensor(inputs), as_tensor(mask)),))
    budget, exactly = grouping.batch_tokens, None
    if grouping.is_fixed:
        exactly = most_groups(most_texts, texts.max_tokens, budget)
    groups: Sequence[TextGroup | StateGroup] = texts.groups(rows_U, budget, exactly)
    order = np.concatenate([group.places for group in groups])
    place_U = np.empty(len(rows_U), dtype=np.int64)
    place_U[order] = np.arange(len(order))
    parts = [
        (group.states if isinstance(group, StateGroup) else group.ids, group.mask)
        for group in groups
    ]
    return Texts(
        tuple(SubBatch(as_tensor(inputs), as_tensor(mask)) for inputs, mask in parts),
        as_tensor(place_U),
    )


def count_texts(*laid_out: Texts) -> TextCounts:
    """Count the texts of a micro-batch."""
    found = np.zeros(7, dtype=np.int64)
    for texts in laid_out:
        masks = [part.mask.numpy() for part in texts.parts]
        lengths = np.concatenate([mask.sum(axis=1) for mask in masks]).astype(np.int64)
        once = lengths if texts.place is None else lengths[texts.place.numpy()]
        slots = sum(mask.size for mask in masks)
        squared = sum(mask.size * mask.shape[1] for mask in masks)
        found += [len(once), once.sum(), once @ once, len(lengths), lengths.sum(), slots, squared]
    return TextCounts(*found.tolist())


def encode_texts(encode: Encode, texts: Texts) -> Tensor:
    """Encode texts that were laid out; return their vectors [U, E] in order.

    If states were laid out, ``encode`` receives the states instead of ids.

    A text that a sub-batch repeats (see :func:`shards.length_groups.length_groups`) is left out of
    the result: its gradient is zero, but its forward and backward pass happen as on the other
    ranks.
    """
    vectors = [encode(part.inputs, part.mask) for part in texts.parts]
    return vectors[0] if texts.place is None else torch.cat(vectors)[texts.place]
