"""Validation while a run trains: when it is due, which step was best, and when to stop.

All ranks measure together and decide by the numbers of rank 0, so that they decide alike. What is
known of former validations goes into every checkpoint: a run that is interrupted ends at the same
step, with the same best one, as one that is not.
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
    """What an evaluator says of a model.

    Attributes:
        values: Metrics by name; ``validation.metric``, of which the highest is the best, is one.
        count: On how much they were measured.
        unit: Of what, in words: ``impressions``.
    """

    values: Mapping[str, float]
    count: int
    unit: str


class Validation(Protocol):
    """An evaluator, and what it measures on: MIND's is
    :class:`trainer.tasks.finetune.validation.ClickValidation`."""

    @property
    def fingerprint(self) -> str:
        """What the numbers are measured on."""
        ...

    @property
    def notes(self) -> list[str]:
        """What is said when a run starts."""
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
            model: Its mode and all random numbers stay as they are.
            distributed: The processes.
            on_part: Called whenever some of this rank's work is done.
            progress: Whether progress is shown.
        """
        ...


@dataclass(kw_only=True)
class Progress:
    """What former validations of a run came to.

    Attributes:
        best_step: The step that was best, None before the first validation.
        best: Its value; the earlier step of equals.
        reference: The last value that counted as an improvement.
        stale: Validations in a row that did not improve on it by more than ``min_delta``.
    """

    best_step: int | None = None
    best: float = -math.inf
    reference: float = -math.inf
    stale: int = 0

    def add(self, step: int, value: float, min_delta: float) -> bool:
        """Take in the value of a step; whether it is the best so far."""
        if value > self.reference + min_delta or self.best_step is None:
            self.reference, self.stale = value, 0
        else:
            self.stale += 1
        is_best = value > self.best
        if is_best:
            self.best_step, self.best = step, value
        return is_best


class Validator(Callback):
    """Validates a run, or none where it has no validation.

    Args:
        run: The run.
        validation: What it is validated with; None never validates.

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
        """What chooses, as it is logged: ``valid/auc``."""
        return f"valid/{self._config.metric}"

    @property
    def fingerprint(self) -> str:
        """What follows the fingerprint of the task's data; empty without validation."""
        found = self._validation
        return "" if found is None else f" validation:{found.fingerprint[:16]}"

    @property
    def notes(self) -> list[str]:
        """What is said when the run starts."""
        return [] if self._validation is None else self._validation.notes

    @property
    def finals(self) -> tuple[str, ...]:
        """Names under which a run's best is compared with that of others."""
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
        """Validate the step if it is due; the best must not be lost, nor the last.

        Raises:
            ConfigError: ``validation.metric`` is not among what is measured.
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
        # Ranks on unlike processors might differ in the last bit of a mean, and then in a decision.
        values = here.from_main(lambda: dict(found.values))
        seconds = time.monotonic() - started
        config, progress = self._config, self.progress
        if config.metric not in values:
            raise ConfigError(
                f"validation.metric is {config.metric!r}, but what this run is validated with "
                f"measures {', '.join(values)}; name one of these"
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
        """Why the run ends early, in words."""
        config, progress = self._config, self.progress
        return (
            f"{self.metric} did not improve in {progress.stale} validations; the best is "
            f"{progress.best:.4f} of step {progress.best_step} (validation.patience "
            f"{config.patience})"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON; empty without validation."""
        if self._validation is None:
            return {}
        known = asdict(self.progress) if self.progress.best_step is not None else None
        return {STATE: known}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over what the checkpoint knew that a run goes on from."""
        known = state.get(STATE)
        self.progress = Progress(**known) if known else Progress()
        self._is_new_best = False


def check_patience(config: ValidationConfig, steps: int) -> None:
    """Refuse a patience that cannot run out before the run does.

    Raises:
        ConfigError: With the arithmetic.
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
