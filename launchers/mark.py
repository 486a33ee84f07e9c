"""Write a step's stamp from a Slurm job: ``python -m launchers.mark``.

Without an exit code the step is running. Job, attempt and nodes come from Slurm's variables.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Step
from trainer.errors import EXIT_DONE, EXIT_REQUEUE


def main(argv: list[str] | None = None) -> int:
    """Write one stamp."""
    parser = argparse.ArgumentParser(prog="python -m launchers.mark", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the pipeline's folder")
    parser.add_argument("--step", required=True, help="the step's name")
    parser.add_argument("--digest", required=True, help="the step's digest")
    parser.add_argument("--task", type=int, help="task number in an array job")
    parser.add_argument("--start", type=float, required=True, help="start time, epoch seconds")
    parser.add_argument("--exit-code", type=int, help="exit code; without one, the step is running")
    arguments = parser.parse_args(argv)
    code: int | None = arguments.exit_code
    stamp = Stamp(
        step=arguments.step,
        digest=arguments.digest,
        state=State.RUNNING if code is None else state_of(code),
        command="",
        start=arguments.start,
        end=None if code is None else time.time(),
        exit_code=code,
        job=os.environ.get("SLURM_JOB_ID"),
        attempt=int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1,
        nodes=os.environ.get("SLURM_JOB_NODELIST"),
    )
    step = Step(name=arguments.step, command=("tnr",))
    Stamps(arguments.folder).write(step, stamp, arguments.task)
    return 0


def state_of(exit_code: int) -> State:
    """Translate an exit code into the state of a step."""
    if exit_code == EXIT_DONE:
        return State.DONE
    return State.STOPPED if exit_code == EXIT_REQUEUE else State.FAILED


if __name__ == "__main__":
    raise SystemExit(main())
