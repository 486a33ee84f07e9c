"""``python -m launchers.mark``: a Slurm job stamps its step, for status and later runs to see."""

from __future__ import annotations

import argparse
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
    parser.add_argument("--task", type=int, help="which task of an array job")
    parser.add_argument("--start", type=float, required=True, help="when it started, epoch seconds")
    parser.add_argument("--exit-code", type=int, required=True, help="how it ended")
    arguments = parser.parse_args(argv)
    stamp = Stamp(
        step=arguments.step,
        digest=arguments.digest,
        state=state_of(arguments.exit_code),
        command="",
        start=arguments.start,
        end=time.time(),
        exit_code=arguments.exit_code,
    )
    step = Step(name=arguments.step, command=("tnr",))
    Stamps(arguments.folder).write(step, stamp, arguments.task)
    return 0


def state_of(exit_code: int) -> State:
    """What an exit code says about a step."""
    if exit_code == EXIT_DONE:
        return State.DONE
    return State.STOPPED if exit_code == EXIT_REQUEUE else State.FAILED


if __name__ == "__main__":
    raise SystemExit(main())
