"""Stand-ins for Slurm's commands."""

import os
from pathlib import Path

import pytest
from helpers.slurm_stand_ins import executable

PYTHONPATH = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch) -> Path:
    """Stand-ins: srun runs its command, scontrol and sbatch write down what they are given."""
    tools = tmp_path / "bin"
    tools.mkdir()
    # srun: its own options come first, then the command.
    executable(tools / "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    executable(
        tools / "scontrol",
        f"#!/bin/bash\n[[ $1 == show ]] && echo localhost && exit\n"
        f'[[ $1 == --oneliner ]] && echo "NodeName=x NodeAddr=localhost Port=1" && exit\n'
        f'echo "$@" >> '
        f"{tmp_path}/scontrol\n[[ ! -e {tmp_path}/no-requeue ]]\n",
    )
    executable(
        tools / "sbatch",
        f'#!/bin/bash\necho "$@" >> {tmp_path}/sbatch\n'
        f"[[ $* == */refused.sbatch ]] && echo 'no such partition' >&2 && exit 1\n"
        f"echo $(( 100 + $(wc -l < {tmp_path}/sbatch) ))\n",
    )
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "localhost")
    return tmp_path
