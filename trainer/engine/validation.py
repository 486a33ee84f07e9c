"""Validation during training: when it is due, which step was best, and when to stop.

All ranks measure together and decide by rank 0's metrics, so that all decide alike. Every
checkpoint records the former validations: an interrupted run ends at the same step, with the same
best step, as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn

from trainer.config.schema import ValidationConfig
from trainer.engine.callback import Callback, Run
from trainer.engine.distributed import Distributed
from trainer.engine.session import Session
from trainer.engine.step import Step
from trainer.engine.watchdog import VALIDATE
from trainer.errors import ConfigError

STATE = "validation"
"""Entry of a checkpoint's ``state.json``: :class:`Progress`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Result of an evaluator for a model.

    Attributes:
        values: Metrics by name, including ``validation.metric``, of which the highest is the best.
        count: Number of units measured.
        unit: Name of the unit, such as ``impressions``.
    """

    values: Mapping[str, float]
    count: int
    unit: str


class Validation(Protocol):
    """An evaluator with its data.

    MIND's is :class:`trainer.tasks.finetune.validation.ClickValidation`.
    """

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data and settings of the evaluator."""
        ...

    @property
    def notes(self) -> list[str]:
        """Lines to print when a run starts."""
        ...

    def measure(
        self,
        model: nn.Module,
        distributed: Distributed,
        *,
        on_part: Callable[[int], None],
        progress: bool = False,
    ) -> Measured:
        """Measure a model that is whole on this rank's device; called by all ranks.

        Args:
            model: Its mode and all random states stay unchanged.
            distributed: The processes.
            on_part: Called whenever a part of this rank's work is done.
            progress: Whether to show a progress bar.
        """
        ...


@dataclass(kw_only=True)
class Progress:
    """Results of the former validations of a run.

    Attributes:
        best_step: The best step; None before the first validation.
        best: Metric of the best step; of equal steps, the earlier one is the best.
        reference: The last value that counted as an improvement.
        stale: Validations in a row that did not improve on ``reference`` by more than
            ``min_delta``.
    """

    best_step: int | None = None
    best: float = -math.inf
    reference: float = -math.inf
    stale: int = 0

    def add(self, step: int, value: float, min_delta: float) -> bool:
        """Add the value of a step; return whether it is the best so far."""
        if value > self.reference + min_delta or self.best_step is None:
            self.reference, self.stale = value, 0
        else:
            self.stale += 1
        is_best = value > self.best
        if is_best:
            self.best_step, self.best = step, value
        return is_best


class Validator(Callback):
    """Callback that validates a run, if the run has a validation.

    Args:
        run: The run.
        validation: Evaluator of the run; None never validates.

    Raises:
        ConfigError: The run is too short for its patience ever to run out.
    """

    def __init__(self, run: Run, validation: Validation | None) -> None:
        self._run, self._config = run, run.config.validates or ValidationConfig()
        self._validation = validation
        self._is_new_best = False
        self.progress = Progress()
        if validation is not None:
            check_patience(self._config, run.steps)

    @property
    def metric(self) -> str:
        """Logged name of the metric that chooses the best step, such as ``valid/auc``."""
        return f"valid/{self._config.metric}"

    @property
    def fingerprint(self) -> str:
        """Suffix of the task's data fingerprint; empty without validation."""
        found = self._validation
        return "" if found is None else f" validation:{found.fingerprint[:16]}"

    @property
    def notes(self) -> list[str]:
        """Lines to print when the run starts."""
        return [] if self._validation is None else self._validation.notes

    @property
    def finals(self) -> tuple[str, ...]:
        """Names of metrics that compare a run's best with other runs."""
        return () if self._validation is None else (f"valid/best_{self._config.metric}",)

    @property
    def is_over(self) -> bool:
        """Whether the run ends early."""
        patience = self._config.patience
        is_on = self._validation is not None and patience is not None
        return is_on and self.progress.stale >= (patience or 0)

    def before_step(self, step: Step) -> None:
        """Log a step that is validated."""
        step.is_logged |= self._is_due(step.number)

    def _is_due(self, step: int) -> bool:
        is_last = step == self._run.steps
        return self._validation is not None and (is_last or step % self._config.every == 0)

    def after_step(self, session: Session, step: Step) -> None:
        """Validate the step if due, and save it if best or last.

        Raises:
            ConfigError: The evaluator does not measure ``validation.metric``.
        """
        step.values |= self._measure(session, step.number)
        step.is_saved |= self._is_new_best or self.is_over

    def _measure(self, session: Session, step: int) -> dict[str, float]:
        self._is_new_best = False
        if self._validation is None or not self._is_due(step):
            return {}
        self._run.at(VALIDATE)
        started = time.monotonic()
        at, here = self._run.at, self._run.distributed
        model = session.full_model().to(here.device)
        found = self._validation.measure(model, here, on_part=lambda _: at(VALIDATE), progress=True)
        # Ranks on different processors might differ in the last bit of a mean, and then in a
        # decision.
        values = here.from_main(lambda: dict(found.values))
        seconds = time.monotonic() - started
        config, progress = self._config, self.progress
        if config.metric not in values:
            raise ConfigError(
                f"validation.metric is {config.metric!r}, but the validation of this run does not "
                f"measure it; expected one of {', '.join(values)}"
            )
        self._is_new_best = progress.add(step, values[config.metric], config.min_delta)
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._run.say(
            f"validation of step {step}: {numbers}  ({found.count:,} {found.unit}, "
            f"{seconds:.1f} s){self._standing()}"
        )
        logged = {f"valid/{name}": value for name, value in values.items()}
        logged[f"valid/best_{config.metric}"] = progress.best
        logged["valid/without_improvement"] = float(progress.stale)
        return logged | {"speed/validation_s": seconds}

    def _standing(self) -> str:
        if self._is_new_best:
            return f"; the best {self._config.metric} so far"
        progress = self.progress
        said = f"; the best {self._config.metric} is {progress.best:.4f} of step "
        said += str(progress.best_step)
        if self._config.patience is not None:
            said += f", {progress.stale} of {self._config.patience} without improvement"
        return said

    def ending(self) -> str:
        """Explain why the run ends early."""
        config, progress = self._config, self.progress
        return (
            f"{self.metric} did not improve in {progress.stale} validations; the best is "
            f"{progress.best:.4f} of step {progress.best_step} (validation.patience "
            f"{config.patience})"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON; empty without validation."""
        if self._validation is None:
            return {}
        known = asdict(self.progress) if self.progress.best_step is not None else None
        return {STATE: known}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restore the progress from the checkpoint that a run continues from."""
        known = state.get(STATE)
        self.progress = Progress(**known) if known else Progress()
        self._is_new_best = False


def check_patience(config: ValidationConfig, steps: int) -> None:
    """Refuse a patience that cannot run out before the run ends.

    Raises:
        ConfigError: The patience is too long; shows the arithmetic.
    """
    if config.patience is None:
        return
    validations = -(-steps // config.every)
    if validations <= config.patience:
        raise ConfigError(
            f"validation.patience {config.patience} can never end this run: in {steps:,} steps, "
            f"one every {config.every:,}, it has {validations:,} validations; lower "
            "validation.every or patience, or leave patience out"
        )
