"""What every task returns, and how its terms become one loss."""

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
    """What a rank computes in one forward pass."""

    batch: Batch
    """What the module half is given."""
    counts: TextCounts = TextCounts()  # noqa: RUF009  # it is frozen
    """What is said about it."""


class StepOutput(TypedDict):
    """Result of one forward pass. A plain dict, because ZeRO-3 looks for tensors in dicts and
    tuples."""

    loss: Tensor
    """Weighted sum of the terms, a scalar with gradient: the mean over the micro-batch."""
    losses: dict[str, Tensor]
    """Each term by name, unweighted, detached."""
    report: dict[str, Tensor]
    """Other numbers to log, detached scalars."""
    num_samples: int
    """Samples of the micro-batch."""
    histograms: NotRequired[dict[str, Tensor]]
    """Numbers between 0 and 1 whose distribution is logged, one vector a name, detached."""


class TaskData(ABC):
    """The data half of a task."""

    order: EpochOrder
    """Order of the task's units: articles, or clicks."""
    fingerprint: str
    """What the data are, part by part; a run is continued only on the same."""
    notes: Sequence[str] = ()
    """What is said when a run starts: samples that are left out, and why."""

    @abstractmethod
    def collate(self, batch: BatchRows) -> MicroBatch:
        """Make one micro-batch, on the CPU."""

    def sharing(self, micro_batch: int, global_batch: int, ranks: int) -> Sharing | None:
        """Say how many texts are left where ranks share them; None where they share nothing."""
        return None

    def sharing_choice(
        self, micro_batch: int, global_batch: int, ranks: int
    ) -> SharingChoice | None:
        """Say what ``data.share_titles auto`` comes to; None where there is nothing to choose."""
        return None


def step_output(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    report: Mapping[str, Tensor],
    num_samples: int,
    histograms: Mapping[str, Tensor] | None = None,
) -> StepOutput:
    """Weigh the terms into one loss; a term of weight 0 is still reported."""
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return StepOutput(
        loss=total,
        losses={name: term.detach() for name, term in terms.items()},
        report={name: value.detach() for name, value in report.items()},
        num_samples=num_samples,
        histograms={name: value.detach() for name, value in (histograms or {}).items()},
    )


def accuracy(scores_BC: Tensor, target_B: Tensor | None = None) -> Tensor:
    """Share of samples whose true candidate (the first, unless told) scores highest.

    Of k that score highest together it counts 1/k: a model that says the same of all candidates
    is no better than chance.
    """
    if target_B is None:
        target_B = scores_BC.new_zeros(len(scores_BC), dtype=torch.long)
    own_B1 = scores_BC.gather(1, target_B[:, None])
    is_best_B = own_B1[:, 0] >= scores_BC.amax(dim=1)
    ties_B = (scores_BC == own_B1).sum(dim=1).clamp_min(1)
    return (is_best_B.float() / ties_B).mean()


def data_fingerprint(**parts: Any) -> str:
    """Fingerprints of what a run reads, each with its name, so that a difference names itself."""
    return " ".join(f"{name}:{part.fingerprint[:16]}" for name, part in parts.items())


def numbered(name: str, parts: Sequence[T]) -> dict[str, T]:
    """``name_0``, ``name_1`` and so on."""
    return {f"{name}_{number}": part for number, part in enumerate(parts)}
