"""The texts of a micro-batch on both sides: laid out by the data, encoded by the model.

With a budget of tokens a forward, texts are sorted by length and cut into sub-batches, each padded
to its own longest text; their vectors are put back in order. Losses and gradients are those of one
batch. A text is its token ids, or the states that frozen layers gave for it. Shapes: U texts,
L tokens, D width of the language model, E news width.
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
    """How texts are cut into sub-batches.

    ZeRO-3 gathers the weights of a layer from all ranks whenever a rank computes it, so all ranks
    must call the encoder equally often. The number of calls is then a function of the configuration
    alone: that of a micro-batch of longest texts, which suffices for any other.
    """

    batch_tokens: int = 0
    """Tokens of one forward of the encoder, padding included; 0 does not group."""
    is_fixed: bool = False
    """Whether every micro-batch has the same number of sub-batches, whatever its texts."""


NO_GROUPING = Grouping()


def grouping_of(config: TrainConfig, *, pads_matter: bool = False) -> Grouping:
    """The grouping that a run may use.

    None where a text's vector depends on the length it is padded to: then another padding would be
    another result (``data.pad_to_max``, ``model.pooling_mask`` off).

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
    """Texts of like lengths that one forward of the encoder takes."""

    inputs: Tensor
    """int64 [n, L] token ids, or [n, L, D] states that frozen layers gave, as stored."""
    mask: Tensor
    """int64 [n, L], 1 where there is a token."""


@dataclass(frozen=True)
class Texts(Batch):
    """U texts as they are laid out for the encoder."""

    parts: tuple[SubBatch, ...]
    """The sub-batches."""
    place: Tensor | None = None
    """int64 [U], where each text is among the sub-batches laid end to end; None of a single one in
    the order of the texts."""
    shared: Tensor | None = None
    """int64 [U], where each text is among the shares of all ranks
    (:mod:`trainer.tasks.finetune.shared_titles`); ``parts`` are then this rank's share. None where
    this rank encodes its own."""

    @property
    def are_states(self) -> bool:
        """Whether the encoder starts from states of frozen layers."""
        return self.parts[0].inputs.is_floating_point()

    @property
    def count(self) -> int:
        """U."""
        return len(self.parts[0].inputs if self.place is None else self.place)

    def with_empty_text(self, pad_id: int) -> "Texts":
        """One text more, of padding alone that counts as tokens (the released code's empty title);
        only of texts in a single sub-batch."""
        ids, mask = self.parts[0].inputs, self.parts[0].mask
        ids = torch.cat([ids, torch.full_like(ids[:1], pad_id)])
        return Texts((SubBatch(ids, torch.cat([mask, torch.ones_like(mask[:1])])),))


@dataclass(frozen=True)
class TextCounts:
    """How much text a micro-batch has: what is reported about it, and what plans count."""

    texts: int = 0
    """Texts, each once."""
    tokens: int = 0
    """Their tokens."""
    tokens_squared: int = 0
    """Sum of their squared lengths, which attention grows with."""
    rows: int = 0
    """Texts as laid out; one that fills up a sub-batch is counted again."""
    row_tokens: int = 0
    """Their tokens."""
    slots: int = 0
    """Places for tokens, padding included."""
    slots_squared: int = 0
    """Sum over the rows of their squared padded lengths."""

    @property
    def padding(self) -> float:
        """Share of the slots that are computed for nothing, 0 to 1: padding, and repeated texts."""
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
        texts: What is read of an article, as token ids or as states.
        rows_U: Articles, int64[U].
        pad_to_max: Pad every text to ``texts.max_tokens``.
        grouping: How they are cut into sub-batches.
        most_texts: The most texts that a micro-batch of the run can have.
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
    """Vectors [U, E] of texts that were laid out, in their order.

    Where states were laid out, ``encode`` is given these instead of ids.

    A text that a sub-batch repeats (see :func:`shards.length_groups.length_groups`) is left out
    here: its gradient is zero, yet its forward and backward happen as on the other ranks.
    """
    vectors = [encode(part.inputs, part.mask) for part in texts.parts]
    return vectors[0] if texts.place is None else torch.cat(vectors)[texts.place]
