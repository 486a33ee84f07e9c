"""Length and learning rate of a run as pure functions of the step."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from trainer.config.schema import OptimizerConfig, RunConfig
from trainer.errors import CheckpointError


def total_steps(run: RunConfig, num_units: int) -> int:
    """Return the number of optimizer steps: epochs in global batches, at most ``max_steps``.

    The number is rounded up.

    Args:
        run: The run's section of the configuration.
        num_units: Samples per epoch.
    """
    # Round first: 0.07 epochs of 100 units in batches of 1 are 7 steps, not
    # ceil(7.000000000000001).
    steps = math.ceil(round(run.epochs * num_units / run.global_batch, 9))
    return max(1, steps if run.max_steps is None else min(steps, run.max_steps))


def length_of(stored: Mapping[str, Any], num_units: int) -> int:
    """Return :func:`total_steps` of a run whose section ``run`` a checkpoint holds.

    Args:
        stored: The section as plain data; missing settings have their defaults.
        num_units: Samples per epoch.

    Raises:
        CheckpointError: A value has another type, or is out of range.
    """
    names = ("epochs", "max_steps", "global_batch")
    kept = {name: stored[name] for name in names if name in stored}
    try:
        return total_steps(msgspec.convert(kept, RunConfig), num_units)
    except (msgspec.ValidationError, ArithmeticError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's section run was edited: {error}") from error


def epochs_read(run: RunConfig, num_units: int) -> int:
    """Return how many epochs a run's batches touch, the last perhaps only in part.

    All batches are full, so the last batch may run into an epoch beyond ``run.epochs``.

    Args:
        run: The run's section of the configuration.
        num_units: Samples per epoch.
    """
    return -(-total_steps(run, num_units) * run.global_batch // num_units)


def learning_rate_factor(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """Return the factor of the base learning rates at a step.

    Warm-up rises linearly and reaches 1 at step ``warmup_steps``. After it, the factor is constant;
    or falls linearly to 0 right after the last step; or falls as half a cosine to the same end.

    Args:
        optimizer: Section with ``schedule`` and ``warmup_steps``.
        step: The next optimizer step, from 1.
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
