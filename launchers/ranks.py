"""Run torchrun, with two additions for schedulers and pipelines.

``python -m launchers.ranks <torchrun options> -m trainer.cli.main train ...`` starts the ranks.
USR1 and USR2 are passed on to the ranks, which checkpoint and stop at the next step (torchrun
itself would die of the signal). If any rank stopped with a checkpoint (exit code 75), this process
ends with 75 too, so that the caller knows to start it again. The exit code is also 75 if the signal
arrived before there was anything to save: before the first rank, or while Python was starting.

TERM is left to torchrun: after a task has failed, ``srun`` sends TERM to the other tasks, and that
counts as a failure.
"""

from __future__ import annotations

from trainer import interrupt  # first: Ctrl-C is answered from here on

# isort: split
import contextlib
import os
import runpy
import signal
import sys
from pathlib import Path

from trainer.engine.rendezvous import check_endpoint
from trainer.environment import prepare
from trainer.errors import EXIT_FAILED, EXIT_REQUEUE, TrainingError

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are passed on to the ranks."""


def main(argv: list[str] | None = None) -> int:
    """Run torchrun in this process.

    Args:
        argv: torchrun's options, then the ranks' command.

    Returns:
        0, 75 if a rank stopped with a checkpoint, or 1.
    """
    prepare()
    words = sys.argv[1:] if argv is None else argv
    try:
        check_endpoint(words)
    except TrainingError as error:
        print(f"tnr: error: {error}", file=sys.stderr)
        return EXIT_FAILED
    passed_on: set[int] = set()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: _pass_on(number, passed_on))
    before = sys.argv
    sys.argv = ["torchrun", *words]
    try:
        # Compare the name: this package must not import torch itself.
        runpy.run_module("torch.distributed.run", run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED if stop.code else 0
    except Exception as error:
        if getattr(error, "sigval", None) == signal.SIGINT:  # from torchrun, once ranks exist
            print(interrupt.line(), file=sys.stderr)
            return interrupt.exit_code()
        codes = _exit_codes(error)
        # A rank that died of the signal was still starting and had no handler yet.
        if EXIT_REQUEUE in codes or any(-code in passed_on for code in codes):
            return EXIT_REQUEUE
        print(f"tnr: error: ranks ended with {codes or error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        sys.argv = before
    return 0


def children(parent: int) -> list[int]:
    """Return the process ids of a process's direct children (Linux).

    Args:
        parent: Process id.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # pid (name) state ppid ...; the name may hold spaces and brackets.
            after_name = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(after_name.rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except (OSError, IndexError, ValueError):
            continue  # the process ended meanwhile
    return found


def _pass_on(number: int, passed_on: set[int]) -> None:
    ranks = children(os.getpid())
    if not ranks:
        # Raise no exception: inside an import it could be mistaken for a missing package.
        said = f"{signal.Signals(number).name}: stopped before the ranks started\n"
        with contextlib.suppress(OSError):
            os.write(2, said.encode())
        os._exit(EXIT_REQUEUE)
    passed_on.add(number)
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, number)


def _exit_codes(error: BaseException) -> list[int]:
    """Return the exit codes in torchrun's error; an empty list for any other error."""
    failures = getattr(error, "failures", {})
    return sorted({failure.exitcode for failure in getattr(failures, "values", list)()})


if __name__ == "__main__":
    sys.exit(main())
