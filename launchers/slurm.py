"""Slurm scripts as a pure function of steps and a few facts about the cluster.

One Slurm task a node; a step of several ranks starts them with torchrun (:mod:`launchers.ranks`),
with port and rendezvous id from the job's id and attempt. A step with an array is an array job.
Dependencies are ``afterok``, so nothing runs on the results of a job that failed.
"""

from __future__ import annotations

import shlex
import shutil
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launchers.steps import Step
from trainer.errors import TinyNewsRecError

TEMPLATE = Path(__file__).parent / "templates" / "job.sbatch"


_RENDEZVOUS = """
# The port follows from the job and the attempt, so neighbours and leftovers do not meet on it.
export MASTER_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$(( 20000 + (SLURM_JOB_ID * 7 + restart * 101) % 20000 ))
export RENDEZVOUS_ID="${SLURM_JOB_ID}-${restart}"
"""


class _Template(string.Template):
    """Placeholders as ``@{name}``, because ``$`` belongs to the shell."""

    delimiter = "@"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a script must know about the cluster."""

    partition: str | None = None
    """Partition, if there is a choice."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    signal_s: int = 180
    """Seconds before the time limit at which the ranks are told to checkpoint."""
    max_requeues: int = 20
    """How often a job that stopped with a checkpoint starts again."""
    max_array_tasks: int = 8
    """Tasks of an array job that run at the same time."""
    python: str = "python"
    """The interpreter of the environment on the nodes."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, such as ``module load cuda``."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    directives: tuple[str, ...] = ()
    """Further ``#SBATCH`` options, such as ``--exclude=node07``."""


@dataclass(frozen=True)
class Job:
    """A step's script and what it waits for."""

    step: Step
    script: str
    needs: tuple[str, ...]

    def submit_words(self, ids: Mapping[str, str], path: Path) -> list[str]:
        """The ``sbatch`` command line.

        Args:
            ids: Job ids of steps that were submitted; needs without one are done already.
            path: Where the script lies.
        """
        words = ["sbatch", "--parsable"]
        waits = [ids[need] for need in self.needs if need in ids]
        if waits:
            words.append(f"--dependency=afterok:{':'.join(waits)}")
        return [*words, str(path)]


def make_job(step: Step, cluster: ClusterConfig, folder: Path, digest: str) -> Job:
    """The batch script of one step.

    Args:
        step: What to run.
        cluster: Where.
        folder: The pipeline's folder of stamps and logs.
        digest: The step's digest, for its stamp.
    """
    python = shlex.quote(cluster.python)
    array = len(step.array)
    log = folder / (f"{step.name}-%A_%a.slurm.log" if array else f"{step.name}-%j.slurm.log")
    task = ' --task "$SLURM_ARRAY_TASK_ID"' if array else ""
    text = _Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        job_name=f"tnr-{step.name}",
        nodes=step.resources.nodes,
        cpus=step.resources.cpus,
        time=_clock(step.resources.minutes),
        log=log,
        signal_s=cluster.signal_s,
        directives="\n".join(_directives(step, cluster)),
        setup="\n".join(_setup(cluster)),
        command=_command(step, cluster),
        launch=_launch(step, cluster),
        rendezvous=_RENDEZVOUS if step.resources.distributed else "",
        max_requeues=cluster.max_requeues,
        requeue_id="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID",
        python=python,
        mark=f"--folder {shlex.quote(str(folder))} --step {step.name} --digest {digest}{task}",
    )
    return Job(step, text, step.needs)


def make_jobs(
    steps: Sequence[Step], cluster: ClusterConfig, folder: Path, digests: Mapping[str, str]
) -> list[Job]:
    """Batch scripts of steps, in their order."""
    return [make_job(step, cluster, folder, digests[step.name]) for step in steps]


def render(jobs: Sequence[Job], folder: Path) -> str:
    """Everything that would be submitted, as text: each script, then its ``sbatch`` line."""
    parts = []
    ids: dict[str, str] = {}
    for job in jobs:
        path = script_path(folder, job.step)
        line = " ".join(job.submit_words(ids, path))
        parts.append(f"# ---- {path}\n{job.script}\n# ---- submitted with\n{line}\n")
        ids[job.step.name] = f"<{job.step.name}>"
    return "\n".join(parts)


def script_path(folder: Path, step: Step) -> Path:
    """Where a step's script is written."""
    return folder / "slurm" / f"{step.name}.sbatch"


def submit(jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """Write the scripts and submit them in order.

    Returns:
        Job id of each step.

    Raises:
        TinyNewsRecError: There is no ``sbatch``, or it refused a script; names those submitted.
    """
    if shutil.which("sbatch") is None:
        raise TinyNewsRecError(
            "there is no sbatch on this machine, so nothing was submitted; run this on a login "
            "node of the cluster, look at the scripts with --print, or run here: tnr pipeline run"
        )
    ids: dict[str, str] = {}
    for job in jobs:
        path = script_path(folder, job.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(job.script, encoding="utf-8")
        done = subprocess.run(
            job.submit_words(ids, path), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            before = ", ".join(f"{name} {number}" for name, number in ids.items()) or "none"
            raise TinyNewsRecError(
                f"sbatch refused {path}: {' '.join(done.stderr.split())}; "
                f"submitted before it: {before}"
            )
        ids[job.step.name] = done.stdout.strip().split(";")[0]
    return ids


def _directives(step: Step, cluster: ClusterConfig) -> list[str]:
    resources = step.resources
    given = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus-per-node": resources.gpus or None,
        "mem": None if resources.memory_gib is None else f"{resources.memory_gib}G",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in given.items() if value is not None]
    if step.array:
        lines.append(f"#SBATCH --array=0-{len(step.array) - 1}%{cluster.max_array_tasks}")
    return lines + [f"#SBATCH {option}" for option in cluster.directives]


def _setup(cluster: ClusterConfig) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in cluster.env.items()]
    return [*cluster.setup, *exports]


def _command(step: Step, cluster: ClusterConfig) -> str:
    """The command as a shell array, with the task's own words where there are several tasks."""
    words = [cluster.python, "-m", "trainer.cli.main", *step.command[1:]]
    text = f"command=({shlex.join(words)})\n"
    if step.array:
        cases = "\n".join(
            f"  {number}) command+=({shlex.join(words)}) ;;"
            for number, words in enumerate(step.array)
        )
        text += f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac\n'
    return text


def _launch(step: Step, cluster: ClusterConfig) -> str:
    resources = step.resources
    if not resources.distributed:
        return '"${command[@]}"'
    torchrun = [
        *(cluster.python, "-m", "launchers.ranks"),
        f"--nnodes={resources.nodes}",
        f"--nproc-per-node={resources.processes}",
        "--rdzv-backend=c10d",
    ]
    # The ranks run the module, so the interpreter and its -m are left out of the command.
    return (
        shlex.join(torchrun)
        + ' --rdzv-id="$RENDEZVOUS_ID" --rdzv-endpoint="$MASTER_HOST:$MASTER_PORT"'
        + ' --max-restarts=0 "${command[@]:1}"'
    )


def _clock(minutes: int) -> str:
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days}-{hours:02d}:{minutes:02d}:00" if days else f"{hours:02d}:{minutes:02d}:00"
