"""What becomes of a step whose loss or gradient is not finite: stop, skip, or go back.

A loss that is not finite on any rank makes the whole gradient so (:func:`spread`), and a gradient
that is not finite is left out by every backend on every rank alike, so weights and optimizer are
what they were before the step whatever the policy then does. Which steps and batches those were is
kept in the checkpoints: a resumed run decides as one that was never stopped.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from shards.order import EpochOrder, Position
from trainer.config.schema import RunConfig
from trainer.engine.backends import StepResult
from trainer.engine.callback import Callback
from trainer.engine.session import Session
from trainer.engine.step import Step
from trainer.errors import TrainingError

_ROWS_SHOWN = 16


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


class NotFinite(Callback):
    """Judges steps by ``run.not_finite`` and keeps the record of the bad ones; same on all ranks.

    Args:
        run: Policy, budget and global batch.
        order: Order of the data, which names batches and their rows.
        warn: Is told of every step that is left out (rank 0).
        rank: This process.
    """

    def __init__(
        self, run: RunConfig, order: EpochOrder, warn: Callable[[str], None], rank: int = 0
    ) -> None:
        self._run = run
        self._order = order
        self._warn = warn
        self._rank = rank
        self._bad_rank: int | None = None
        self.faults: list[Fault] = []

    def state(self) -> dict[str, Any]:
        """The record."""
        return {"not_finite": [asdict(fault) for fault in self.faults]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over the record; what made the run go back stays, for it says what to leave out."""
        known = [Fault(**entry) for entry in state.get("not_finite", [])]
        self.faults = known + [fault for fault in self.faults if fault not in known]

    def leaves_out(self, position: Position) -> bool:
        """Whether the batch that ends at a position was not finite before, and never comes again.

        A batch that was skipped lies behind every position that knows of it, so this matters for
        those that made the run go back.
        """
        samples = self._order.total_at(position)
        return any(fault.samples == samples for fault in self.faults)

    def flag(self, step: Step) -> int:
        """This rank and one where its loss is not finite, else 0."""
        return 0 if math.isfinite(step.loss) else self._rank + 1

    def on_flag(self, highest: int) -> None:
        """Remember the highest rank whose loss is not finite, None for none."""
        self._bad_rank = highest - 1 if highest else None

    def after_step(self, session: Session, step: Step) -> None:
        """Log how many steps were not finite so far."""
        if self.faults:
            step.values["train/skipped_steps"] = float(len(self.faults))

    def goes_back(self, step: Step) -> bool:
        """Whether the step just taken sends the run back to its newest checkpoint.

        Raises:
            TrainingError: The policy is to stop, or the budget is used up.
        """
        bad_rank, result = self._bad_rank, step.result
        # An overflow of fp16 is no fault as long as its loss scale can be lowered.
        if bad_rank is None and (result.is_applied or result.loss_scale is not None):
            return False
        what = "gradient" if bad_rank is None else "loss"
        fault = Fault(step.number, what, bad_rank, self._order.total_at(step.position))
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
        return goes_back

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
