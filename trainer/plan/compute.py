"""FLOPs of a run; a multiplication with its addition counts as 2.

For token slots S of sub-batches of length L (padding included), a layer's forward pass takes

    2 S (4 D^2 + 2 D F)   projections and feed-forward
    4 S L D               scores of attention and their weighted sum

and the head 2 S D Q for additive pooling and 2 U D E for the vectors of U texts. A backward pass is
twice the forward pass of the trained parts; no gradient flows into frozen layers below. Embedding
look-ups, norms, dropout, the user encoder and losses are left out, because they contain no D x D
matrix.
"""

from dataclasses import dataclass

from trainer.config.schema import TrainConfig
from trainer.plan.sizes import TaskSize


@dataclass(frozen=True, kw_only=True)
class Work:
    """Input of the encoder in an optimizer step (or another portion), over all ranks."""

    texts: float
    """Distinct texts, each encoded once per micro-batch."""
    tokens: float
    """Tokens of these texts, special tokens included."""
    slots: float
    """Slots computed for them: tokens and padding."""
    slots_squared: float
    """Sum of n x L x L over sub-batches of n texts padded to L."""

    @property
    def padding(self) -> float:
        """Share of the slots that is padding, 0 to 1."""
        return 1.0 - self.tokens / self.slots if self.slots else 0.0

    def times(self, factor: float) -> "Work":
        """Return the work multiplied by a factor."""
        return Work(
            texts=self.texts * factor,
            tokens=self.tokens * factor,
            slots=self.slots * factor,
            slots_squared=self.slots_squared * factor,
        )


@dataclass(frozen=True, kw_only=True)
class MicroWork:
    """Work of a micro-batch for the encoder."""

    mean: Work
    """Mean micro-batch."""
    largest: Work
    """Micro-batch with the most slots."""
    basis: str
    """Basis of the numbers, in words."""


def longest_work(config: TrainConfig) -> MicroWork:
    """Return the work of a micro-batch of longest texts, all different: the upper bound."""
    counts = config.most_texts(config.run.micro_batch)
    slots = sum(texts * tokens for texts, tokens in counts)
    work = Work(
        texts=sum(texts for texts, _ in counts),
        tokens=slots,
        slots=slots,
        slots_squared=sum(texts * tokens**2 for texts, tokens in counts),
    )
    return MicroWork(mean=work, largest=work, basis="at most: every text different and longest")


def layer_flops(size: TaskSize, work: Work) -> float:
    """Return the FLOPs of one layer's forward pass."""
    D, F = size.backbone.width, size.backbone.inner
    return 2 * work.slots * (4 * D * D + 2 * D * F) + 4 * work.slots_squared * D


def forward_flops(size: TaskSize, work: Work) -> float:
    """Return the FLOPs of the encoder's forward pass."""
    return size.backbone.layers * layer_flops(size, work) + _head_flops(size, work)


def training_flops(
    size: TaskSize, work: Work, *, is_checkpointed: bool = False, from_states: bool = False
) -> float:
    """Return the FLOPs of the forward and backward pass.

    Args:
        size: The model.
        work: Input of the encoder.
        is_checkpointed: Whether trained layers are computed twice
            (``run.activation_checkpointing``).
        from_states: Whether frozen layers are read from a column (``model.frozen_states``).
    """
    trained = size.trained_layers * layer_flops(size, work)
    again = trained if is_checkpointed else 0.0
    forward = forward_flops(size, work)
    if from_states:
        forward = trained + _head_flops(size, work)
    return forward + 2 * (trained + _head_flops(size, work)) + again


def _head_flops(size: TaskSize, work: Work) -> float:
    width = size.backbone.width
    return 2 * work.slots * width * size.query_dim + 2 * work.texts * width * size.news_dim
