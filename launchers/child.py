"""The process that runs one step: forked from a server that has the heavy modules imported already.

Importing torch, transformers and accelerate takes seconds, and the method has dozens of steps. The
server only imports: it starts no thread pool and runs no tensor operation, so the processes forked
from it have a clean OpenMP runtime, clean generators and nothing of an earlier step.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from launchers import ranks
from trainer.environment import prepare
from trainer.errors import EXIT_FAILED

PRELOAD = ("launchers.warm",)
"""Modules of the server."""

GRACE_S = 120.0
"""How long a step may go on after its pipeline died, to checkpoint."""


def context() -> ForkServerContext:
    """The context whose processes are forked from the warm server (started with the first one)."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(PRELOAD))
    return found


def run_child(
    words: Sequence[str],
    processes: int,
    output: Connection,
    module: str,
    environment: Mapping[str, str],
) -> None:
    """Run one ``tnr`` command; the body of the child process.

    Args:
        words: The command line without ``tnr``.
        processes: Ranks to start it with; more than one goes through torchrun.
        output: Where standard output and standard error go.
        module: The module whose ``main`` runs the command.
        environment: The pipeline's environment; the server has that of its own start.
    """
    os.environ.clear()
    os.environ.update(environment)
    prepare()
    os.setsid()  # Ctrl-C on the terminal reaches the pipeline alone, which passes on one signal
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # held back by the server
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", line_buffering=True)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    code = EXIT_FAILED
    try:
        code = _run(list(words), processes, module)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(code)


def _run(words: list[str], processes: int, module: str) -> int:
    if processes > 1:
        torchrun = ["--standalone", "--nnodes=1", f"--nproc-per-node={processes}"]
        return ranks.main([*torchrun, "--max-restarts=0", "-m", module, *words])
    return int(importlib.import_module(module).main(words))


def _stop_with_parent() -> None:
    """A pipeline that was killed must not leave a step writing into its run folder for long."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)
