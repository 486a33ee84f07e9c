"""Run a command to its end, with a time limit and no process left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HIDDEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def one_thread() -> dict[str, str]:
    """An environment with one CPU thread, on loopback, outside any process group of the caller.

    Sums over another number of threads round differently: to be equal to the bit, runs that are
    compared have the same.
    """
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    only = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    return environment | only


def run(
    command: Sequence[str], *, timeout: float, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run in :func:`one_thread`.

    Raises:
        subprocess.TimeoutExpired: It took longer than ``timeout`` seconds; it has been killed.
    """
    running = subprocess.Popen(
        command,
        cwd=cwd,
        env=one_thread() | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        raise
    return subprocess.CompletedProcess(command, running.returncode, out, err)


def torchrun(
    words: Sequence[str], *, processes: int, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a script of the tests on so many ranks; on one without a launcher.

    Raises:
        subprocess.TimeoutExpired: It took longer than ``timeout`` seconds; it has been killed.
    """
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    return run([*command, *words], timeout=timeout)
