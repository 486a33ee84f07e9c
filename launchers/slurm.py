"""Make Slurm scripts as a pure function of steps and a few cluster facts.

Each node runs one Slurm task, which starts its ranks with torchrun (:mod:`launchers.ranks`), or
each rank is a Slurm task. Port and rendezvous id come from the job's id and attempt. A step with an
array is an array job. Dependencies are ``afterok``, so no step uses results of a failed job.
"""

from __future__ import annotations

import re
import shlex
import string
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launchers.jobs import JobBook
from launchers.settings import build
from launchers.steps import Step
from shards.files import atomic_file
from trainer.config.text import refuse_control, shown
from trainer.config.yaml_files import read_yaml
from trainer.errors import ConfigError, TinyNewsRecError

TEMPLATE = Path(__file__).parent / "templates" / "job.sbatch"


_RENDEZVOUS = """
# The address by which Slurm itself reaches the first node: names of nodes need not resolve.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$(scontrol --oneliner show node "$head" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
# The port follows from the job and the attempt, so neighbours and leftovers do not meet on it.
export MASTER_PORT=$(( 20000 + (SLURM_JOB_ID * 7 + restart * 101) % 12000 ))
export RENDEZVOUS_ID="${SLURM_JOB_ID}-${restart}"
# A task that stopped with a checkpoint leaves this file: srun may kill the others while they still
# follow it, and then ends with their code.
export STOPPED=@{folder}/slurm/stopped-$RENDEZVOUS_ID
mkdir -p @{folder}/slurm
rm -f "$STOPPED"
"""

_AFTER_RANKS = """
if [[ -e $STOPPED ]]; then
  rm -f "$STOPPED"
  code=75
fi
"""

_STARTS_AGAIN = """\
# A process that dies of USR1 or USR2 was still starting, with nothing to save: start it again.
if [[ $code -eq 138 || $code -eq 140 ]]; then code=75; fi
"""

_CANNOT_GO_ON = """\
# This step dies of USR1 and USR2 and saves nothing: a restart would end in the same way.
if [[ $code -eq 138 || $code -eq 140 ]]; then
  echo "ended by the signal @{signal_s} s before its time limit: raise resources.minutes" >&2
  code=1
fi
"""

# Every task runs this text, so $ is expanded in the task and not in the batch shell. The trap is
# needed because Slurm signals every process of a task, and this shell must outlive its child.
_TASK = """trap : USR1 USR2 TERM
@{ranks}
code=0
@{run} || code=$?
if [[ $code -eq 138 || $code -eq 140 ]]; then code=75; fi
if [[ $code -eq 75 ]]; then : > "$STOPPED"; fi
exit $code"""

_PER_RANK = """export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE"""


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


class _Template(string.Template):
    """Template with placeholders like ``@{name}``, because the shell uses ``$``."""

    delimiter = "@"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """The facts about the cluster that a script needs."""

    partition: str | None = None
    """Partition, if the cluster offers several."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    signal_s: int = 180
    """Seconds before the time limit at which the ranks get the signal to checkpoint."""
    max_requeues: int = 20
    """How often a job that stopped with a checkpoint is requeued."""
    max_array_tasks: int = 8
    """Number of tasks of an array job that may run at the same time."""
    tasks: Literal["per_node", "per_rank"] = "per_node"
    """One Slurm task per node, which starts its ranks with torchrun, or one task per rank."""
    network_interface: str | None = None
    """Network interface of the ranks (gloo and NCCL); None lets them find one."""
    python: str = "python"
    """The interpreter of the environment on the nodes (or in the container)."""
    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, such as ``source .venv/bin/activate``."""
    container: tuple[str, ...] = ()
    """Words before the command of each task, such as ``[apptainer, exec, --nv, image.sif]``."""
    srun: tuple[str, ...] = ()
    """Further options of ``srun``, such as ``--container-image=...`` of pyxis."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    directives: tuple[str, ...] = ()
    """Further ``#SBATCH`` options, such as ``--exclude=node07``."""

    def __post_init__(self) -> None:
        """Refuse values that would silently become another directive or another shell line.

        Raises:
            ConfigError: A value is empty or holds a control character, a variable has an invalid
                name, or a count is negative.
        """
        for name, value in vars(self).items():
            words = value if isinstance(value, tuple) else (value,)
            for word in words if name != "env" else (*self.env, *self.env.values()):
                if isinstance(word, str):
                    refuse_control(word, f"cluster.{name}")
                    if not word.strip() and name not in ("env", "container", "srun"):
                        raise ConfigError(f"cluster.{name} is {shown(word)}; expected one line")
        for directive in self.directives:
            if not directive.startswith("-"):
                raise ConfigError(f"cluster.directives: {shown(directive)}; expected --name=value")
        for name in self.env:
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(f"cluster.env: {shown(name)} is not a valid variable name")
        counts = {"signal_s": 0, "max_requeues": 0, "max_array_tasks": 1}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"cluster.{name} is {getattr(self, name)}; expected at least {least}"
                )


def load_cluster(path: str | Path) -> ClusterConfig:
    """Read a cluster file; ``launchers/templates/cluster.yaml`` explains every key.

    Raises:
        ConfigError: A key or value is wrong; the message names the file and the key.
    """
    content = read_yaml(path)
    try:
        return build(ClusterConfig, content, "cluster")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Job:
    """A step's script and the steps that it waits for."""

    step: Step
    script: str
    needs: tuple[str, ...]
    digest: str

    def submit_words(self, ids: Mapping[str, str], path: Path) -> list[str]:
        """Return the ``sbatch`` command line.

        Args:
            ids: Job ids of submitted steps; a needed step without a job id is done already.
            path: Path of the script.
        """
        words = ["sbatch", "--parsable"]
        waits = [ids[need] for need in self.needs if need in ids]
        if waits:
            words.append(f"--dependency=afterok:{':'.join(waits)}")
        return [*words, str(path)]


def make_job(
    step: Step, cluster: ClusterConfig, folder: Path, digest: str, left: Sequence[int] = ()
) -> Job:
    """Make the batch script of one step.

    Args:
        step: The step to run.
        cluster: The cluster's facts.
        folder: The pipeline's folder of stamps and logs.
        digest: The step's digest, for its stamp.
        left: Unfinished tasks of an array; an empty sequence stands for all tasks.

    Raises:
        ConfigError: The signal would come before the job has begun, or the folder's path cannot be
            written into a script.
    """
    resources = step.resources
    _check_folder(folder)
    if cluster.signal_s >= 60 * resources.minutes:
        raise ConfigError(
            f"step {step.name}: cluster.signal_s is {cluster.signal_s}, expected less than its "
            f"time limit of {resources.minutes} minutes; lower it or raise resources.minutes"
        )
    per_rank = cluster.tasks == "per_rank"
    tasks = resources.processes if per_rank else 1
    cpus = max(1, resources.cpus // tasks)
    quoted = shlex.quote(str(folder))
    array = len(step.array)
    # Slurm replaces %A, %a and %j by ids; %% stands for a % in the folder's path.
    log = f"{str(folder).replace('%', '%%')}/{step.name}-{'%A_%a' if array else '%j'}.slurm.log"
    task = ' --task "$SLURM_ARRAY_TASK_ID"' if array else ""
    rendezvous = ""
    if resources.distributed:
        rendezvous = _Template(_RENDEZVOUS).substitute(folder=quoted)
    after_signal = _Template(_STARTS_AGAIN if step.goes_on else _CANNOT_GO_ON)
    text = _Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        job_name=f"tnr-{step.name}",
        nodes=resources.nodes,
        tasks=tasks,
        cpus=cpus,
        time=_clock(resources.minutes),
        log=_sbatch_word(log),
        signal_s=cluster.signal_s,
        directives="\n".join(_directives(step, cluster, left)),
        setup="\n".join(_setup(cluster)),
        command=_command(step, cluster),
        launch=_launch(step, cluster, cpus),
        rendezvous=rendezvous,
        after_signal=after_signal.substitute(signal_s=cluster.signal_s),
        after_ranks=_AFTER_RANKS if resources.distributed else "",
        max_requeues=cluster.max_requeues,
        requeue_id="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID",
        python=shlex.quote(cluster.python),
        mark=f"--folder {quoted} --step {step.name} --digest {digest}{task}",
    )
    return Job(step, text, step.needs, digest)


def make_jobs(
    steps: Sequence[Step],
    cluster: ClusterConfig,
    folder: Path,
    digests: Mapping[str, str],
    left: Mapping[str, Sequence[int]] | None = None,
) -> list[Job]:
    """Make the batch scripts of steps, in order; ``left`` as in :func:`make_job`, by step."""
    tasks = left or {}
    return [
        make_job(step, cluster, folder, digests[step.name], tasks.get(step.name, ()))
        for step in steps
    ]


def render(jobs: Sequence[Job], folder: Path) -> str:
    """Return everything to submit as text: each script, then its ``sbatch`` line."""
    parts = []
    ids: dict[str, str] = {}
    for job in jobs:
        path = script_path(folder, job.step)
        *words, script = job.submit_words(ids, path)
        line = f"{' '.join(words)} {shlex.quote(script)}"
        parts.append(f"# ---- {path}\n{job.script}\n# ---- submitted with\n{line}\n")
        ids[job.step.name] = f"<{job.step.name}>"
    return "\n".join(parts)


def script_path(folder: Path, step: Step) -> Path:
    """Return the path of a step's script."""
    return folder / "slurm" / f"{step.name}.sbatch"


def submit(
    jobs: Sequence[Job], folder: Path, book: JobBook, queued: Mapping[str, str]
) -> dict[str, str]:
    """Write the scripts and submit them in order, except for steps that are queued already.

    Args:
        jobs: Jobs in an order in which needed steps come first.
        folder: The pipeline's folder.
        book: Keeps the job ids; :func:`launchers.jobs.submission` yields it and ``queued``.
        queued: Job ids of queued or running steps; steps that need them wait for them.

    Returns:
        Job id of each submitted step.

    Raises:
        TinyNewsRecError: ``sbatch`` refused a script, or a step is queued with another command; the
            message names the submitted steps.
    """
    for job in jobs:
        name = job.step.name
        if name in queued and book.jobs[name].digest != job.digest:
            raise TinyNewsRecError(
                f"step {name} is queued as job {queued[name]} with other settings than now; "
                f"end it first: scancel {queued[name]}"
            )
    ids: dict[str, str] = {}
    for job in jobs:
        if job.step.name in queued:
            continue
        path = script_path(folder, job.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "w") as file:
            file.write(job.script)
        words = job.submit_words({**queued, **ids}, path)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            before = ", ".join(f"{name} {number}" for name, number in ids.items()) or "none"
            raise TinyNewsRecError(
                f"sbatch refused {path}: {' '.join(done.stderr.split())}; "
                f"submitted before it: {before}"
            )
        ids[job.step.name] = done.stdout.strip().split(";")[0]
        book.note(job.step, ids[job.step.name], job.digest)
    return ids


def _check_folder(folder: Path) -> None:
    refuse_control(str(folder), "the folder of scripts and logs")
    if str(folder).startswith("-"):
        raise ConfigError(
            f"the folder of scripts and logs is {shown(str(folder))}; sbatch would read a script's "
            "path in it as an option: give an absolute path"
        )
    if "\\" in str(folder):
        raise ConfigError(
            f"the folder of scripts and logs is {shown(str(folder))}; Slurm drops a \\ from the "
            "path of a log and then inserts no job id: choose a folder without a \\"
        )


def _sbatch_word(value: str) -> str:
    """Quote a value for an ``sbatch`` directive.

    Only double quotes and backslashes quote in all versions of Slurm; ``#`` begins a comment even
    between quotes.
    """
    if _BARE_WORD.fullmatch(value):
        return value
    return '"' + re.sub(r'([\\"#])', r"\\\1", value) + '"'


def _directives(step: Step, cluster: ClusterConfig, left: Sequence[int]) -> list[str]:
    resources = step.resources
    given = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus-per-node": resources.gpus or None,
        "mem": None if resources.memory_gib is None else f"{resources.memory_gib}G",
    }
    lines = [
        f"#SBATCH --{name}={_sbatch_word(str(value))}"
        for name, value in given.items()
        if value is not None
    ]
    if step.array:
        tasks = ",".join(map(str, left)) or f"0-{len(step.array) - 1}"
        lines.append(f"#SBATCH --array={tasks}%{cluster.max_array_tasks}")
    return lines + [f"#SBATCH {option}" for option in cluster.directives]


def _setup(cluster: ClusterConfig) -> list[str]:
    lines = [f"module load {shlex.join(cluster.modules)}"] if cluster.modules else []
    env = dict(cluster.env)
    if cluster.network_interface is not None:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        env = dict.fromkeys(names, cluster.network_interface) | env
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return [*lines, *cluster.setup, *exports]


def _command(step: Step, cluster: ClusterConfig) -> str:
    """Return the command as a shell array; several tasks each append their own words."""
    words = [cluster.python, "-m", "trainer.cli.main", *step.command[1:]]
    text = f"command=({shlex.join(words)})\n"
    if step.array:
        cases = "\n".join(
            f"  {number}) command+=({shlex.join(words)}) ;;"
            for number, words in enumerate(step.array)
        )
        text += f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac\n'
    return text


def _launch(step: Step, cluster: ClusterConfig, cpus: int) -> str:
    """Return the words that follow ``srun`` and its fixed options."""
    # Since Slurm 22.05 srun does not inherit the job's --cpus-per-task.
    options = shlex.join([f"--cpus-per-task={cpus}", *cluster.srun])
    before = f"{shlex.join(cluster.container)} " if cluster.container else ""
    resources = step.resources
    if not resources.distributed:
        return f'{options} {before}"${{command[@]}}"'
    if cluster.tasks == "per_rank":
        ranks, run, words = _PER_RANK, f'{before}"$@"', '"${command[@]}"'
    else:
        torchrun = [
            *(cluster.python, "-m", "launchers.ranks"),
            f"--nnodes={resources.nodes}",
            f"--nproc-per-node={resources.processes}",
            "--rdzv-backend=c10d",
        ]
        ranks = "is_host=$(( SLURM_PROCID == 0 ))"
        run = (
            f"{before}{shlex.join(torchrun)}"
            ' --rdzv-id="$RENDEZVOUS_ID" --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT"'
            ' --rdzv-conf="is_host=$is_host" --max-restarts=0 "$@"'
        )
        # The ranks run the module, so leave the interpreter and -m out of the command.
        words = '"${command[@]:1}"'
    task = _Template(_TASK).substitute(ranks=ranks, run=run)
    return f"{options} bash -c {shlex.quote(task)} task {words}"


def _clock(minutes: int) -> str:
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days}-{hours:02d}:{minutes:02d}:00" if days else f"{hours:02d}:{minutes:02d}:00"
