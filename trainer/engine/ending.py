"""How a run ends: its export, and the last entry of its ``state.json``."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from trainer.engine.callback import Callback, Run
from trainer.engine.session import Session
from trainer.engine.step import Step
from trainer.engine.validation import Validator
from trainer.engine.watchdog import EXPORT
from trainer.errors import CheckpointError, StopForRequeue

Export = Callable[[nn.Module, Path, dict[str, Any]], object]
"""``export(model, folder, info)``: publish the model, with its whole fp32 weights, as a folder."""


class Ending(Callback):
    """Callback that exports the model at the end and keeps the run folder's ``state.json``.

    Args:
        run: The run.
        validator: Chooses the best step.
        export: Called on rank 0.
    """

    def __init__(self, run: Run, validator: Validator, export: Export) -> None:
        self._run, self._validator, self._export = run, validator, export

    def publish(self, session: Session, folder: Path, said: dict[str, Any] | None = None) -> None:
        """Export the session's model; called by all ranks.

        Args:
            session: Session to export.
            folder: Folder to write.
            said: Further entries of the export's information.
        """
        self._run.at(EXPORT)
        model = session.full_model()
        info = session.info(self._run.folder.path, self._run.steps) | (said or {})
        self._run.distributed.from_main(lambda: self._export(model, folder, info) and None)

    def after_step(self, session: Session, step: Step) -> None:
        """Save the last step."""
        step.is_saved |= step.number == self._run.steps

    def after_checkpoint(self, number: int) -> None:
        """Write the run's progress to ``state.json``."""
        self._run.folder.write_state("running", number, self._run.steps)

    def on_end(self, session: Session) -> None:
        """Export the last or the best weights, and mark the run as finished.

        Raises:
            CheckpointError: The checkpoint of the best step is missing or damaged.
        """
        run, validator, step = self._run, self._validator, session.step
        run.at(EXPORT)
        if validator.is_over:
            run.say(f"ended after step {step} of {run.steps}: {validator.ending()}")
        chosen = self._take_chosen(session)
        self.publish(session, run.folder.export, chosen)
        early: dict[str, Any] = {}
        if step < run.steps:
            stale = validator.progress.stale
            early = {"reason": validator.ending(), "without_improvement": stale}
        run.distributed.from_main(
            lambda: run.folder.write_state("finished", step, run.steps, **early)
        )
        said = f"finished: {run.folder.export}"
        if chosen:
            said += f" has the weights of step {chosen['step']} of {step}: {chosen['chosen']}"
        run.say(said)

    def _take_chosen(self, session: Session) -> dict[str, Any]:
        """Load the weights to export into the session; called by all ranks.

        Returns:
            Entries of the export about the weights: the step, and the metric that chose it. Empty
            without validation: the weights are then those of the last step.
        """
        metric, progress = self._validator.metric, self._validator.progress
        if progress.best_step is None:
            return {}
        if self._run.config.run.export == "last":
            return {"chosen": "last step", "step": session.step}
        if progress.best_step != session.step:
            best_step = progress.best_step

            def verify() -> Any:
                try:
                    return self._run.store.verify(best_step)
                except CheckpointError as error:
                    raise CheckpointError(
                        f"the weights of step {best_step}, the best by {metric}, cannot be "
                        f"exported: {error}. Put an intact copy back, or export the last step "
                        "with --run.export last"
                    ) from error

            session.take_weights(self._run.distributed.from_main(verify))
        return {"chosen": f"best {metric}", "step": progress.best_step, metric: progress.best}

    def on_stop(self, error: BaseException) -> None:
        """Record the reason of an early end with the step of the last checkpoint."""
        folder = self._run.folder
        state = folder.state() if folder.is_open else {}
        if state.get("state") != "running":
            return
        step, reason = int(state["step"]), str(error) or type(error).__name__
        is_failed = not isinstance(error, StopForRequeue)
        with contextlib.suppress(OSError):  # the disk may refuse the write
            folder.write_state("stopped", step, self._run.steps, reason, is_failed=is_failed)
