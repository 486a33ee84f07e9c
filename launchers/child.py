"""Run one step in a process forked from a server with the heavy modules imported.

Importing torch, transformers and accelerate takes seconds, and the method has dozens of steps. The
server only imports: the server starts no thread pool and runs no tensor operation. Each forked
process therefore has a clean OpenMP runtime, clean generators and no state of an earlier step.
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
"""Modules that the server imports at its start."""

GRACE_S = 120.0
"""Time that a step has for a checkpoint after its pipeline died."""


def context() -> ForkServerContext:
    """Return the context that forks from the warm server; the first process starts the server."""
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
        processes: Number of ranks; more than one are started with torchrun.
        output: File that receives standard output and standard error.
        module: The module whose ``main`` runs the command.
        environment: The pipeline's environment; the server still has the one it started with.
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
    """Stop this step, and its writes to the run folder, soon after its pipeline died."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)
