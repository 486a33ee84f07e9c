"""Run the ``tnr`` command as a user does: another process, its exit code and what it printed."""

import subprocess
import sys
from pathlib import Path

from helpers.process import run

ROOT = Path(__file__).parents[2]


def tnr(
    *words: object, processes: int = 1, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; no process is left when this returns.

    Raises:
        subprocess.TimeoutExpired: It took longer than ``timeout`` seconds.
    """
    command = [sys.executable, "-m"]
    if processes > 1:
        command += [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "-m",
        ]
    command += ["trainer.cli.main", *map(str, words)]
    return run(command, timeout=timeout, cwd=cwd or ROOT, PYTHONPATH=str(ROOT))
