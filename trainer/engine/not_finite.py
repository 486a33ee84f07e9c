"""What becomes of a step whose loss or gradient is not finite: stop, skip, or go back.

A loss that is not finite on any rank makes the whole gradient so (:func:`spread`), and a gradient
that is not finite is left out by every backend on every rank alike, so weights and optimizer are
what they were before the step whatever the policy then does. Which steps and batches those were is
kept in the checkpoints: a resumed run decides as one that was never stopped.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

import torch

from shards.order import EpochOrder, Position
from trainer.config.schema import RunConfig
from trainer.engine.backends import StepResult
from trainer.errors import TrainingError

_ROWS_SHOWN = 16


class Verdict(Enum):
    """What the loop does after a step."""

    GO_ON = auto()
    GO_BACK = auto()


@dataclass(frozen=True)
class Fault:
    """One step that was not finite.

    Attributes:
        step: The optimizer step, from 1.
        what: ``loss`` or ``gradient``.
        rank: The highest rank whose loss it was; None for a gradient, which is one over all ranks.
        samples: Units consumed since the beginning of the first epoch once its global batch is: by
            this number the batch is known again.
    """

    step: int
    what: str
    rank: int | None
    samples: int


def spread(loss: torch.Tensor) -> torch.Tensor:
    """The loss, with a gradient that is NaN throughout where the loss is not finite.

    A loss can be NaN beside a finite gradient (a constant term that is NaN); the ranks learn of it
    through the gradient that they share anyway. A finite loss is multiplied by exactly 1.

    Args:
        loss: Scalar with gradient.
    """
    is_finite = torch.isfinite(loss.detach())
    return loss * torch.where(is_finite, 1.0, torch.nan).to(loss.dtype)


class NotFinite:
    """Judges steps by ``run.not_finite`` and keeps the record of the bad ones; same on all ranks.

    Args:
        run: Policy, budget and global batch.
        order: Order of the data, which names batches and their rows.
        warn: Is told of every step that is left out (rank 0).
    """

    def __init__(self, run: RunConfig, order: EpochOrder, warn: Callable[[str], None]) -> None:
        self._run = run
        self._order = order
        self._warn = warn
        self.faults: list[Fault] = []

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over the record of the checkpoint that a run goes on from."""
        self.faults = [Fault(**entry) for entry in state.get("not_finite", [])]

    def record(self) -> list[dict[str, Any]]:
        """The record as plain JSON values."""
        return [asdict(fault) for fault in self.faults]

    def leaves_out(self, position: Position) -> bool:
        """Whether the batch that ends at a position was not finite before, and never comes again.

        A batch that was skipped lies behind every position that knows of it, so this matters for
        those that made the run go back.
        """
        samples = self._order.total_at(position)
        return any(fault.samples == samples for fault in self.faults)

    def judge(
        self, step: int, bad_rank: int | None, result: StepResult, position: Position
    ) -> Verdict:
        """Say what to do after a step.

        Args:
            step: The step.
            bad_rank: A rank whose loss is not finite, None where all are.
            result: What the backend did with the gradient.
            position: Place in the data after the step.

        Raises:
            TrainingError: The policy is to stop, or the budget is used up.
        """
        # An overflow of fp16 is no fault as long as its loss scale can be lowered.
        if bad_rank is None and (result.is_applied or result.loss_scale is not None):
            return Verdict.GO_ON
        fault = Fault(
            step,
            "gradient" if bad_rank is None else "loss",
            bad_rank,
            self._order.total_at(position),
        )
        if result.is_applied:
            raise TrainingError(
                f"{self._said(fault, result)}, and yet the weights were updated; nothing of this "
                "step is saved"
            )
        if self._run.not_finite == "stop":
            raise TrainingError(
                f"{self._said(fault, result)}; nothing of this step is saved. Lower the learning "
                "rate, clip gradients (optimizer.max_grad_norm), look at that batch, or let "
                "run.not_finite leave such steps out"
            )
        self.faults.append(fault)
        count, budget = len(self.faults), self._run.not_finite_budget
        if count > budget:
            raise TrainingError(
                f"{self._said(fault, result)}; that is one more than run.not_finite_budget allows "
                f"({budget}). Steps that were not finite: "
                f"{', '.join(str(fault.step) for fault in self.faults)}"
            )
        goes_back = self._run.not_finite == "reload"
        self._warn(
            f"{self._said(fault, result)}; "
            + ("going back, without this batch" if goes_back else "left out")
            + f" ({count} of at most {budget}); {self._rows(fault)}"
        )
        return Verdict.GO_BACK if goes_back else Verdict.GO_ON

    def _said(self, fault: Fault, result: StepResult) -> str:
        if fault.rank is not None:
            return f"the loss is not finite in step {fault.step} on rank {fault.rank}"
        return (
            f"the gradient is not finite in step {fault.step} (norm {result.grad_norm} over all "
            "ranks)"
        )

    def _rows(self, fault: Fault) -> str:
        """The first rows of the batch, by which ``tnr shards show`` finds its samples."""
        batch = self._run.global_batch
        start = fault.samples - batch
        rows, _ = self._order.span(start, start + min(batch, _ROWS_SHOWN))
        more = f" and {batch - len(rows)} more" if batch > len(rows) else ""
        return f"rows of its global batch: {', '.join(map(str, rows))}{more}"
