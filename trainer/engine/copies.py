"""Teacher copies: which steps of a run become teachers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.schema import CopiesConfig
from trainer.engine.callback import Callback
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.engine.session import Session
    from trainer.engine.step import Step

Publish = Callable[["Session", Path], None]

MOST = 100_000
"""Largest number of copies that a run may keep."""


class Copies(Callback):
    """Callback that publishes the model as a teacher after chosen steps.

    Args:
        steps: The chosen steps; see :func:`copy_steps`.
        path: Returns the folder of a step's copy.
        export: Publishes the session's model in a folder.
    """

    def __init__(self, steps: Sequence[int], path: Callable[[int], Path], export: Publish) -> None:
        self._steps, self._path, self._export = frozenset(steps), path, export

    def after_step(self, session: "Session", step: "Step") -> None:
        """Publish a copy if the step was chosen."""
        if step.number in self._steps:
            self._export(session, self._path(step.number))


def copy_steps(copies: CopiesConfig, total_steps: int) -> list[int]:
    """Return the steps after which the model is kept as a teacher, in ascending order.

    ``every_k``: every multiple of K = ``every``. ``first_m``: K, 2K, … M·K (the paper's figure).
    ``last_m``: the last M of all multiples of K and the final step (the released code: 60,500,
    61,000, 61,500 and 61,743 for M = 4, K = 500). ``list``: the given steps.

    Args:
        copies: The rule and its numbers.
        total_steps: Optimizer steps of the run.

    Raises:
        ConfigError: The run is too short for the requested teachers, or does not reach a listed
            step.
    """
    if copies.rule == "none":
        return []
    if copies.rule == "list":
        outside = [step for step in copies.steps if not 1 <= step <= total_steps]
        if outside:
            raise ConfigError(
                f"run.copies.steps has {outside}, but the run has steps 1 to {total_steps}: "
                "lengthen the run, name other steps, or set run.copies.rule none for a trial "
                "without teachers"
            )
        return sorted(set(copies.steps))
    multiples = range(copies.every, total_steps + 1, copies.every)
    found: Sequence[int]
    if copies.rule == "every_k":
        found, wanted = multiples, 1
    elif copies.rule == "first_m":
        found, wanted = multiples[: copies.count], copies.count
    else:
        last = {*multiples[-min(copies.count, MOST + 1) :], total_steps}
        found, wanted = sorted(last)[-copies.count :], copies.count
    if len(found) > MOST:
        raise ConfigError(
            f"run.copies.rule {copies.rule} with every {copies.every} keeps {len(found)} copies; "
            f"expected at most {MOST}: raise run.copies.every or shorten the run"
        )
    chosen = list(found)
    if len(chosen) < wanted:
        fitting = total_steps // wanted
        lower = f"run.copies.every {fitting} or less, or " if fitting else ""
        raise ConfigError(
            f"run.copies.rule {copies.rule} with every {copies.every} gives {len(chosen)} copies "
            f"in {total_steps} steps, but {wanted} teachers are wanted: lengthen the run, or set "
            f"{lower}run.copies.rule none for a trial without teachers"
        )
    return chosen
