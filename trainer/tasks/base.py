"""Common types of all tasks, and the sum of a task's terms to one loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor

from shards.order import EpochOrder
from shards.sharing import Sharing, SharingChoice
from shards.stream import BatchRows
from trainer.batch import Batch
from trainer.tasks.texts import TextCounts

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """Input of one forward pass on one rank."""

    batch: Batch
    """Input of the module half."""
    counts: TextCounts = TextCounts()  # noqa: RUF009  # it is frozen
    """Text counts for the log."""


class StepOutput(TypedDict):
    """Result of one forward pass.

    A plain dict, because ZeRO-3 looks for tensors in dicts and tuples.
    """

    loss: Tensor
    """Weighted sum of the terms, a scalar with gradient: the mean over the micro-batch."""
    losses: dict[str, Tensor]
    """Each term by name, unweighted, detached."""
    report: dict[str, Tensor]
    """Other numbers to log, detached scalars."""
    num_samples: int
    """Samples of the micro-batch."""
    histograms: NotRequired[dict[str, Tensor]]
    """Values between 0 and 1 whose distribution is logged, one vector per name, detached."""


class TaskData(ABC):
    """The data half of a task."""

    order: EpochOrder
    """Order of the task's units: articles, or clicks."""
    fingerprint: str
    """Fingerprint of every part of the data; a run is continued only on the same data."""
    notes: Sequence[str] = ()
    """Lines to print when a run starts: which samples are left out, and why."""

    @abstractmethod
    def collate(self, batch: BatchRows) -> MicroBatch:
        """Make one micro-batch on the CPU."""

    def sharing(self, micro_batch: int, global_batch: int, ranks: int) -> Sharing | None:
        """Measure how many texts are left if ranks share them; None without sharing."""
        return None

    def sharing_choice(
        self, micro_batch: int, global_batch: int, ranks: int
    ) -> SharingChoice | None:
        """Return the choice of ``data.share_titles auto``; None if there is nothing to choose."""
        return None


def step_output(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    report: Mapping[str, Tensor],
    num_samples: int,
    histograms: Mapping[str, Tensor] | None = None,
) -> StepOutput:
    """Sum the weighted terms to one loss; a term of weight 0 is still reported."""
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return StepOutput(
        loss=total,
        losses={name: term.detach() for name, term in terms.items()},
        report={name: value.detach() for name, value in report.items()},
        num_samples=num_samples,
        histograms={name: value.detach() for name, value in (histograms or {}).items()},
    )


def accuracy(scores_BC: Tensor, target_B: Tensor | None = None) -> Tensor:
    """Return the share of samples whose true candidate scores highest.

    The true candidate is the first, unless given. If k candidates tie for the highest score, the
    sample counts 1/k: a model that scores all candidates equally is as good as chance.
    """
    if target_B is None:
        target_B = scores_BC.new_zeros(len(scores_BC), dtype=torch.long)
    own_B1 = scores_BC.gather(1, target_B[:, None])
    is_best_B = own_B1[:, 0] >= scores_BC.amax(dim=1)
    ties_B = (scores_BC == own_B1).sum(dim=1).clamp_min(1)
    return (is_best_B.float() / ties_B).mean()


def data_fingerprint(**parts: Any) -> str:
    """Join the fingerprints of what a run reads, each with its name for later comparison."""
    return " ".join(f"{name}:{part.fingerprint[:16]}" for name, part in parts.items())


def numbered(name: str, parts: Sequence[T]) -> dict[str, T]:
    """Name values ``name_0``, ``name_1`` and so on."""
    return {f"{name}_{number}": part for number, part in enumerate(parts)}
