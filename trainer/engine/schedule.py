"""How long a run is and what its learning rate does: pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from trainer.config.schema import OptimizerConfig, RunConfig
from trainer.errors import CheckpointError


def total_steps(run: RunConfig, num_units: int) -> int:
    """Optimizer steps of a run: the epochs in global batches, rounded up, and at most
    ``max_steps``.

    Args:
        run: The run's section of the configuration.
        num_units: Samples of an epoch.
    """
    # Rounded first: 0.07 epochs of 100 units in batches of 1 are 7 steps, not
    # ceil(7.000000000000001).
    steps = math.ceil(round(run.epochs * num_units / run.global_batch, 9))
    return max(1, steps if run.max_steps is None else min(steps, run.max_steps))


def length_of(stored: Mapping[str, Any], num_units: int) -> int:
    """:func:`total_steps` of a run whose section ``run`` a checkpoint holds.

    Args:
        stored: The section as plain data; what it lacks was at its default.
        num_units: Samples of an epoch.

    Raises:
        CheckpointError: A value has another type, or is none that a run can have.
    """
    names = ("epochs", "max_steps", "global_batch")
    kept = {name: stored[name] for name in names if name in stored}
    try:
        return total_steps(msgspec.convert(kept, RunConfig), num_units)
    except (msgspec.ValidationError, ArithmeticError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's section run was edited: {error}") from error


def epochs_read(run: RunConfig, num_units: int) -> int:
    """Epochs that a run's batches are of, the last perhaps in small part.

    All batches are full, so that the last one may run on into an epoch beyond ``run.epochs``.

    Args:
        run: The run's section of the configuration.
        num_units: Samples of an epoch.
    """
    return -(-total_steps(run, num_units) * run.global_batch // num_units)


def learning_rate_factor(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """What the base learning rates are multiplied with at a step.

    Warm-up rises linearly and reaches 1 at step ``warmup_steps``. After it: constant; linear, which
    would reach 0 right after the last step; or half a cosine to the same end.

    Args:
        optimizer: Its ``schedule`` and ``warmup_steps``.
        step: The optimizer step about to be taken, from 1.
        steps: Steps of the whole run.
    """
    if step <= optimizer.warmup_steps:
        return step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return 1.0
    progress = (step - 1 - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    progress = min(1.0, progress)
    if optimizer.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
