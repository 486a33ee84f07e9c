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
from trainer.engine.distributed import Distributed
from trainer.errors import ConfigError
from trainer.evaluate.metrics import METRIC_NAMES, Metrics
from trainer.evaluate.sharded import Ranks

STATE = "validation"
"""Entry of a checkpoint's ``state.json``: :class:`Progress`."""


class Validation(Protocol):
    """What a model is measured on: :class:`ClickValidation` is one."""

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
        ranks: Ranks,
        *,
        device: str,
        on_part: Callable[[int], None],
        progress: bool = False,
    ) -> Metrics:
        """Measure a model; called by all ranks."""
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


class Validator:
    """Validates a run, or none where it has no validation.

    Args:
        config: Its section.
        validation: What is measured on; None never validates.
        distributed: The processes.
        steps: Steps of the whole run.
        tick: Called whenever some work is done: a long validation is no hang.
        say: Says a line to people; called on rank 0 alone.

    Raises:
        ConfigError: The run is too short for its patience ever to run out.
    """

    def __init__(
        self,
        config: ValidationConfig,
        validation: Validation | None,
        distributed: Distributed,
        steps: int,
        *,
        tick: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._validation = validation
        self._distributed = distributed
        self._steps = steps
        self._tick = tick
        self._say = say
        self._is_new_best = False
        self.progress = Progress()
        if validation is not None:
            check_patience(config, steps)

    @property
    def metric(self) -> str:
        """What chooses, as it is logged: ``valid/auc``."""
        return f"valid/{self._config.metric}"

    @property
    def fingerprint(self) -> str:
        """What follows the fingerprint of the task's data; empty without validation."""
        if self._validation is None:
            return ""
        return f" validation:{self._validation.fingerprint[:16]}"

    @property
    def notes(self) -> list[str]:
        """What is said when the run starts."""
        return [] if self._validation is None else self._validation.notes

    @property
    def finals(self) -> tuple[str, ...]:
        """Names under which a run's best is compared with that of others."""
        return () if self._validation is None else (f"valid/best_{self._config.metric}",)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the step just validated must not be lost: it is the best, or the last."""
        return self._is_new_best or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the run ends early."""
        patience = self._config.patience
        is_on = self._validation is not None and patience is not None
        return is_on and self.progress.stale >= (patience or 0)

    def is_due(self, step: int) -> bool:
        """Whether a step is validated."""
        if self._validation is None:
            return False
        return step == self._steps or step % self._config.every == 0

    def run(self, step: int, whole_model: Callable[[], nn.Module]) -> dict[str, float]:
        """Validate a step if it is due; called by all ranks.

        Args:
            step: The step just taken.
            whole_model: Gives the model with its whole weights on every rank.

        Returns:
            What is logged; empty where the step is not due.
        """
        self._is_new_best = False
        if self._validation is None or not self.is_due(step):
            return {}
        self._tick()
        started = time.monotonic()
        here = self._distributed
        metrics = self._validation.measure(
            whole_model().to(here.device),
            Ranks(here.rank, here.world_size, group=here.control),
            device=str(here.device),
            on_part=lambda _: self._tick(),
            progress=True,
        )
        # Ranks on unlike processors might differ in the last bit of a mean, and then in a decision.
        found = self._distributed.from_main(metrics.to_dict)
        seconds = time.monotonic() - started
        config, progress = self._config, self.progress
        self._is_new_best = progress.add(step, found[config.metric], config.min_delta)
        if self._distributed.is_main:
            self._say(self._line(step, found, metrics.num_impressions, seconds))
        values = {f"valid/{name}": found[name] for name in METRIC_NAMES}
        values[f"valid/best_{config.metric}"] = progress.best
        values["valid/without_improvement"] = float(progress.stale)
        return values | {"speed/validation_s": seconds}

    def _line(self, step: int, found: dict[str, float], impressions: int, seconds: float) -> str:
        numbers = "  ".join(f"{name} {found[name]:.4f}" for name in METRIC_NAMES)
        said = (
            f"validation of step {step}: {numbers}  ({impressions:,} impressions, {seconds:.1f} s)"
        )
        if self._is_new_best:
            return f"{said}; the best {self._config.metric} so far"
        said += f"; the best {self._config.metric} is {self.progress.best:.4f} of step "
        said += str(self.progress.best_step)
        if self._config.patience is not None:
            said += f", {self.progress.stale} of {self._config.patience} without improvement"
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
