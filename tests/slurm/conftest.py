"""One Slurm cluster for all tests of this folder, and the tiny world that its jobs work on."""

import os
import sys
from pathlib import Path

import pytest
from helpers.slurm_cluster import SlurmCluster, cluster, why_not
from helpers.world import TinyWorld, make_world

from launchers.cluster import ClusterConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory):
    """The cluster; skipped with the reason where none can be started, unless it is asked for."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("TNR_REQUIRE_SLURM"):
            pytest.fail(f"TNR_REQUIRE_SLURM is set, but: {reason}")
        pytest.skip(reason)
    # Jobs inherit the submitter's environment, as they do on most clusters.
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    os.environ["OMP_NUM_THREADS"] = "1"
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"), num_articles=60)


@pytest.fixture
def config() -> ClusterConfig:
    return ClusterConfig(python=sys.executable, signal_s=30, max_requeues=3)


__all__ = ["SlurmCluster"]
