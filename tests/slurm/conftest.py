"""The real Slurm that the tests of this folder share."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.slurm_cluster import SlurmCluster, SlurmError, missing_programs


def _unavailable(reason: str) -> None:
    """Skip, unless a Slurm was demanded (``TNR_REQUIRE_SLURM=1``, as CI does)."""
    if os.environ.get("TNR_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Two nodes with two CPUs each, for the whole session."""
    missing = missing_programs()
    if missing:
        _unavailable(f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)")
    folder = Path(tempfile.mkdtemp(prefix="tnr-slurm-"))  # pytest's own paths are too long
    cluster = SlurmCluster(folder)
    try:
        try:
            cluster.start()
        except (SlurmError, OSError) as error:
            _unavailable(f"a Slurm does not start here: {error}")
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(cluster.conf)  # launchers run Slurm's commands themselves
        try:
            yield cluster
        finally:
            del os.environ["SLURM_CONF"]
            if before is not None:
                os.environ["SLURM_CONF"] = before
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
