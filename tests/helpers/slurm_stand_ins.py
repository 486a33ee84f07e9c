"""A cluster and two steps, and scripts of steps run by bash against stand-ins for Slurm."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from launchers.slurm import ClusterConfig, make_job
from launchers.steps import Resources, Step

FOLDER = Path("runs/mind/pipeline")
CLUSTER = ClusterConfig(
    partition="gpu",
    account="news",
    setup=("source .venv/bin/activate",),
    env={"HF_HUB_OFFLINE": "1", "NOTE": "two words"},
    directives=("--exclude=node07",),
)
TRAIN = Step(
    name="post-train",
    command=("tnr", "train", "post_train", "--run.dir", "runs/with space"),
    resources=Resources(nodes=2, processes=4, cpus=32, gpus=4, memory_gib=200, minutes=1500),
)
CACHE = Step(
    name="cache-1",
    command=("tnr", "teachers", "cache", "--stage", "1"),
    needs=("post-train",),
    array=(("--models", "copies/a"), ("--models", "copies/b")),
)


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_script(step: Step, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    cluster = ClusterConfig(python=sys.executable, max_requeues=2)
    script = make_job(step, cluster, folder / "pipeline", "d").script
    # The fake command line of the other tests stands where tnr would.
    script = script.replace("trainer.cli.main", "helpers.fake_tnr")
    path = folder / "script.sbatch"
    path.write_text(script)
    return subprocess.run(
        ["bash", str(path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def stamp(folder: Path, name: str) -> dict:
    return json.loads((folder / "pipeline" / f"{name}.json").read_text())
