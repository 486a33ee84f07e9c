"""What happens after a step whose loss or gradient is not finite: stop, skip or roll back.

A loss that is not finite on one rank makes the whole gradient not finite (:func:`spread`), and
every backend drops such a gradient on every rank, so weights and optimizer are as before the step
under every policy. Checkpoints record these steps and batches, so a resumed run decides like an
uninterrupted one.
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
        rank: The highest rank whose loss was not finite; None for a gradient, which all ranks
            share.
        samples: Units consumed from the start of the first epoch to the end of the step's global
            batch; this number identifies the batch.
    """

    step: int
    what: str
    rank: int | None
    samples: int


def spread(loss: torch.Tensor) -> torch.Tensor:
    """Return the loss; if it is not finite, make its whole gradient NaN.

    A loss can be NaN while its gradient is finite (a constant NaN term); the ranks learn of the NaN
    through the gradient that they share anyway. A finite loss is multiplied by exactly 1.

    Args:
        loss: Scalar with a gradient.
    """
    is_finite = torch.isfinite(loss.detach())
    return loss * torch.where(is_finite, 1.0, torch.nan).to(loss.dtype)


class NotFinite(Callback):
    """Callback that judges steps by ``run.not_finite`` and records bad ones; same on all ranks.

    Args:
        run: Policy, budget and global batch.
        order: Order of the data, which identifies batches and their rows.
        warn: Called for every skipped step (rank 0).
        rank: Rank of this process.
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
        """Return the record."""
        return {"not_finite": [asdict(fault) for fault in self.faults]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore the record, but keep faults that caused a rollback."""
        known = [Fault(**entry) for entry in state.get("not_finite", [])]
        self.faults = known + [fault for fault in self.faults if fault not in known]

    def leaves_out(self, position: Position) -> bool:
        """Return whether the batch that ends at a position was not finite and is skipped.

        A batch that was skipped in place lies before every position that knows of it, so this
        matters only for batches that caused a rollback.
        """
        samples = self._order.total_at(position)
        return any(fault.samples == samples for fault in self.faults)

    def flag(self, step: Step) -> int:
        """Return this rank plus one if its loss is not finite, otherwise 0."""
        return 0 if math.isfinite(step.loss) else self._rank + 1

    def on_flag(self, highest: int) -> None:
        """Remember the highest rank whose loss is not finite, or None."""
        self._bad_rank = highest - 1 if highest else None

    def after_step(self, session: Session, step: Step) -> None:
        """Log the number of steps so far that were not finite."""
        if self.faults:
            step.values["train/skipped_steps"] = float(len(self.faults))

    def goes_back(self, step: Step) -> bool:
        """Return whether the last step makes the run roll back to its newest checkpoint.

        Raises:
            TrainingError: The policy is to stop, or the budget is used up.
        """
        bad_rank, result = self._bad_rank, step.result
        # An overflow of fp16 is not a fault while the loss scale can be lowered.
        if bad_rank is None and (result.is_applied or result.loss_scale is not None):
            return False
        what = "gradient" if bad_rank is None else "loss"
        fault = Fault(step.number, what, bad_rank, self._order.total_at(step.position))
        if result.is_applied:
            raise TrainingError(
                f"{self._said(fault, result)}, but the weights were updated; nothing of this step "
                "is saved"
            )
        if self._run.not_finite == "stop":
            raise TrainingError(
                f"{self._said(fault, result)}; nothing of this step is saved. Lower the learning "
                "rate, clip gradients (optimizer.max_grad_norm), look at that batch, or set "
                "run.not_finite to skip or reload"
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
            + ("rolling back, without this batch" if goes_back else "left out")
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
        """List the first rows of the batch, for use with ``tnr shards show``."""
        batch = self._run.global_batch
        start = fault.samples - batch
        rows, _ = self._order.span(start, start + min(batch, _ROWS_SHOWN))
        more = f" and {batch - len(rows)} more" if batch > len(rows) else ""
        return f"rows of its global batch: {', '.join(map(str, rows))}{more}"
