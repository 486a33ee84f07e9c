"""The texts of a micro-batch on both sides: laid out by the data, encoded by the model.

With a budget of tokens a forward, texts are sorted by length and cut into sub-batches, each padded
to its own longest text; their vectors are put back in order. Losses and gradients are those of one
batch. A text is its token ids, or the states that frozen layers gave for it. Shapes: U texts,
L tokens, D width of the language model, E news width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.length_groups import most_groups
from shards.texts import TextGroup, TextView
from trainer.config.schema import TrainConfig
from trainer.engine.deepspeed_file import read_deepspeed_file, stage_of
from trainer.frozen.states import StateGroup, StateView
from trainer.tasks.base import Batch

FIELDS = ("title", "body")
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


def grouping_of(config: TrainConfig, *, empty_slots: bool) -> Grouping:
    """The grouping that a run may use.

    None where a text's vector depends on the length it is padded to: then another padding would be
    another result (``data.pad_to_max``, ``model.pooling_mask`` off, encoded empty slots).
    """
    pads_matter = config.data.pad_to_max or not config.model.pooling_mask or empty_slots
    if pads_matter or not config.data.batch_tokens:
        return NO_GROUPING
    deepspeed = config.run.deepspeed
    is_fixed = deepspeed is not None and stage_of(read_deepspeed_file(deepspeed)) == 3
    return Grouping(config.data.batch_tokens, is_fixed)


def collate_texts(
    texts: TextView | StateView,
    field: str,
    rows_U: np.ndarray,
    *,
    pad_to_max: bool,
    grouping: Grouping,
    most_texts: int,
) -> Batch:
    """Token ids, or stored states, of the texts of a micro-batch.

    Args:
        texts: What is read of an article, as token ids or as states.
        field: Name that the texts go by in the batch, ``title`` or ``body``.
        rows_U: Articles, int64[U].
        pad_to_max: Pad every text to ``texts.max_tokens``.
        grouping: How they are cut into sub-batches.
        most_texts: The most texts that a micro-batch of the run can have.

    Returns:
        Without grouping ``<field>_ids`` and ``<field>_mask`` [U, L]; with it ``<field>_ids.g`` and
        ``<field>_mask.g`` for every sub-batch g, and ``<field>_place`` [U]: where each text is
        among the sub-batches laid end to end. Of stored states, ``<field>_states`` [U, L, D] stand
        in the places of the ids.
    """
    if not grouping.batch_tokens:
        if isinstance(texts, StateView):
            states_ULD, mask_UL = texts.batch(rows_U)
            return {f"{field}_states": states_ULD, f"{field}_mask": mask_UL}
        ids_UL, mask_UL = texts.batch(rows_U, pad_to_max)
        return {f"{field}_ids": ids_UL, f"{field}_mask": mask_UL}
    budget, exactly = grouping.batch_tokens, None
    if grouping.is_fixed:
        exactly = most_groups(most_texts, texts.max_tokens, budget)
    groups: Sequence[TextGroup | StateGroup] = texts.groups(rows_U, budget, exactly)
    order = np.concatenate([group.places for group in groups])
    place_U = np.empty(len(rows_U), dtype=np.int64)
    place_U[order] = np.arange(len(order))
    arrays: Batch = {f"{field}_place": place_U}
    for g, group in enumerate(groups):
        if isinstance(group, StateGroup):
            arrays[f"{field}_states.{g}"] = group.states
        else:
            arrays[f"{field}_ids.{g}"] = group.ids
        arrays[f"{field}_mask.{g}"] = group.mask
    return arrays


def encode_texts(encode: Encode, batch: Mapping[str, Tensor], field: str) -> Tensor:
    """Vectors [U, E] of the texts that :func:`collate_texts` laid out, in their order.

    Where states were laid out (:func:`has_states`), ``encode`` is given these instead of ids.

    A text that a group repeats (see :func:`shards.length_groups.length_groups`) is left out here:
    its gradient is zero, yet its forward and backward happen as on the other ranks.
    """
    kind = "states" if has_states(batch, field) else "ids"
    if f"{field}_place" not in batch:
        return encode(batch[f"{field}_{kind}"], batch[f"{field}_mask"])
    parts: list[Tensor] = []
    while (name := f"{field}_{kind}.{len(parts)}") in batch:
        parts.append(encode(batch[name], batch[f"{field}_mask.{len(parts)}"]))
    return torch.cat(parts)[batch[f"{field}_place"]]


def has_states(batch: Mapping[str, Tensor], field: str) -> bool:
    """Whether the texts of a batch are laid out as states of frozen layers."""
    return f"{field}_states" in batch or f"{field}_states.0" in batch


def reported(batch: Batch) -> Batch:
    """What is said about a batch instead of being passed on to the model.

    Returns:
        ``padding``: the share of its token slots that are computed for nothing, as a float32 scalar
        array: padding, and texts that were repeated to fill a sub-batch. ``texts``, float64[3]: how
        many texts there are, how many tokens they have, and the sum of their squared lengths
        (which attention grows with), without padding and repetitions.
    """
    slots, texts = 0, np.zeros(3)
    for field in FIELDS:
        masks = [array for name, array in batch.items() if name.startswith(f"{field}_mask")]
        if masks:
            lengths = np.concatenate([mask.sum(axis=1) for mask in masks]).astype(np.float64)
            lengths = lengths[batch.get(f"{field}_place", slice(None))]
            slots += sum(mask.size for mask in masks)
            texts += np.array([len(lengths), lengths.sum(), lengths @ lengths])
    share = 1.0 - texts[1] / max(slots, 1)
    return {"padding": np.asarray(share, dtype=np.float32), "texts": texts}
