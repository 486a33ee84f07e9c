"""Run the toy script in one or several processes, with a time limit, and read what it left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.process import run

SCRIPT = Path(__file__).parent / "train_toy.py"
TIMEOUT_S = 300


def settings(run_dir: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a small toy run; keyword names have ``__`` for the dot."""
    base = {
        "task": "post_train",
        "data.articles": "toy",
        "optimizer.lr": 0.01,
        "optimizer.backbone_lr": 0.003,
        "run.dir": str(run_dir),
        "run.seed": 3,
        "run.global_batch": 8,
        "run.micro_batch": 4,
        "run.max_steps": 20,
        "run.epochs": 100.0,
        "run.log_every": 1,
        "run.checkpoint_every": 5,
    }
    return base | {name.replace("__", "."): value for name, value in changes.items()}


def launch(
    folder: Path, spec: dict[str, Any], processes: int = 1, *, torchrun: bool | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a spec to its end, whatever that is; the processes are gone when this returns.

    Raises:
        subprocess.TimeoutExpired: They hung.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable]
    if processes > 1 if torchrun is None else torchrun:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    command += [str(SCRIPT), str(path)]
    return run(command, timeout=TIMEOUT_S)


def torchrun(folder: Path, script: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script on the ``spec.json`` of a folder, on so many ranks.

    Raises:
        subprocess.TimeoutExpired: They hung.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(script), str(folder / "spec.json")]
    return run(command, timeout=TIMEOUT_S)


def metrics(run_dir: Path, name: str = "train/loss") -> dict[int, float]:
    """One metric of a run by step."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["step"]: record[name] for record in records}
