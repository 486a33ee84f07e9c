"""The fixture itself: two nodes that run a job together."""

from pathlib import Path

import pytest
from helpers.slurm_cluster import NODES, SlurmCluster

pytestmark = pytest.mark.slurm


def test_a_job_of_two_nodes_runs_on_both(slurm_cluster: SlurmCluster, tmp_path: Path):
    log = tmp_path / "job.log"
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\nsrun bash -c 'echo $SLURMD_NODENAME'\n")
    words = ("sbatch", "--parsable", "--nodes=2", f"--output={log}", str(script))
    number = slurm_cluster.run(*words)
    slurm_cluster.wait_until(
        lambda: slurm_cluster.state(number) == "COMPLETED", 60, "the job is completed"
    )
    assert sorted(log.read_text().split()) == sorted(NODES), log.read_text()
