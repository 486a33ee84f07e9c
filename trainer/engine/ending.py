"""How a run ends: which weights are exported, and what ``state.json`` says then."""

import contextlib
from typing import Any

from trainer.checkpoint.store import CheckpointStore
from trainer.config.schema import TrainConfig
from trainer.engine.distributed import Distributed
from trainer.engine.run_folder import RunFolder
from trainer.engine.session import Session
from trainer.engine.validation import Validator
from trainer.errors import CheckpointError, StopForRequeue


def take_chosen(
    config: TrainConfig,
    session: Session,
    store: CheckpointStore,
    validator: Validator,
    distributed: Distributed,
) -> dict[str, Any]:
    """Give the session the weights that the run exports at its end; called by all ranks.

    Returns:
        What the export says about them: the step, and by what it was chosen. Empty where nothing
        was validated: then they are those of the last step.

    Raises:
        CheckpointError: The checkpoint of the best step is gone or damaged.
    """
    progress = validator.progress
    if progress.best_step is None:
        return {}
    if config.run.export == "last":
        return {"chosen": "last step", "step": session.step}
    if progress.best_step != session.step:
        best_step = progress.best_step

        def verify() -> Any:
            try:
                return store.verify(best_step)
            except CheckpointError as error:
                raise CheckpointError(
                    f"the weights of step {best_step}, the best by {validator.metric}, cannot be "
                    f"exported: {error}. Put a good copy back, or export the last step's with "
                    "--run.export last"
                ) from error

        session.take_weights(distributed.from_main(verify))
    return {
        "chosen": f"best {validator.metric}",
        "step": progress.best_step,
        validator.metric: progress.best,
    }


def finished_line(folder: RunFolder, chosen: dict[str, Any], last_step: int) -> str:
    """What is said of the export of a finished run."""
    said = f"finished: {folder.export}"
    if not chosen:
        return said
    return f"{said} has the weights of step {chosen['step']} of {last_step}: {chosen['chosen']}"


def write_finished(folder: RunFolder, validator: Validator, step: int, steps: int) -> None:
    """Say that a run is finished: at its last step, or before it for want of improvement."""
    if step < steps:
        stale = validator.progress.stale
        folder.write_state("finished", step, steps, validator.ending(), without_improvement=stale)
    else:
        folder.write_state("finished", step, steps)


def write_stopped(folder: RunFolder, error: BaseException, steps: int) -> None:
    """Leave the reason of an early end, with the last checkpoint's step; the disk may refuse."""
    state = folder.state()
    if state.get("state") == "running" and folder.is_open:
        with contextlib.suppress(OSError):
            folder.write_state(
                "stopped",
                int(state["step"]),
                steps,
                str(error) or type(error).__name__,
                is_failed=not isinstance(error, StopForRequeue),
            )
