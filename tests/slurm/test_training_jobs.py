"""Training over two nodes of a real Slurm: preempted, killed, cancelled, on a node that goes away.

Every run is compared with one of the same ranks that nothing stopped.
"""

import json
import os
import signal
from pathlib import Path

import pytest
from helpers.launch import metrics
from helpers.slurm_cluster import SlurmCluster, command, wait_for
from helpers.tnr import tnr
from helpers.world import TINY_MODEL, TinyWorld

from launchers.cluster import ClusterConfig
from launchers.slurm import make_jobs, submit
from launchers.stamps import Stamps, State
from launchers.steps import Resources, Step, digests

pytestmark = pytest.mark.slurm

STEPS = 40
START_S = 120.0
"""Two nodes of one core each import torch and DeepSpeed, beside other work."""


def training(world: TinyWorld, run: Path, **settings: object) -> tuple[str, ...]:
    """A post-training that takes a few seconds of steps; every ``settings`` name has its dots as
    ``__``."""
    given = TINY_MODEL | {
        "data.articles": world.articles.path,
        "run.dir": run,
        "run.micro_batch": 2,
        "run.max_steps": STEPS,
        "run.epochs": 100,
        "run.log_every": 1,
        "run.checkpoint_every": 5,
        "run.copies.rule": "none",
        "run.deepspeed": "zero2",
    }
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ("tnr", "train", "post_train", *words)


@pytest.fixture(scope="module")
def reference(world: TinyWorld) -> dict[int, float]:
    """Losses of the same ranks under torchrun, uninterrupted."""
    run = world.folder / "runs" / "reference"
    done = tnr(*training(world, run)[1:], processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics(run)


class Submitted:
    """One training step and one that needs it, submitted."""

    def __init__(
        self, slurm: SlurmCluster, world: TinyWorld, config: ClusterConfig, name: str
    ) -> None:
        self.slurm = slurm
        self.run = world.folder / "runs" / name
        self.folder = world.folder / "pipelines" / name
        train = Step(
            name="train",
            command=training(world, self.run),
            proof=(str(self.run / "export" / "tnr.json"),),
            output=str(self.run),
            resources=Resources(nodes=2, processes=1, cpus=1, minutes=10),
        )
        after = Step(
            name="after",
            command=("tnr", "export", str(self.run), "--out", str(self.folder / "model")),
            needs=("train",),
            resources=Resources(cpus=1, minutes=5),
        )
        self.steps = [train, after]
        self.digests = digests(self.steps)
        self.config = config
        self.submit()

    def submit(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = make_jobs(self.steps, self.config, self.folder, self.digests)
        self.ids = submit(jobs, self.folder)

    @property
    def logs(self) -> list[Path]:
        return sorted(self.folder.glob("*.log"))

    def state(self, name: str) -> State:
        step = next(step for step in self.steps if step.name == name)
        return Stamps(self.folder).state(step, self.digests[name])

    def wait(self, name: str, *states: str, timeout_s: float = START_S) -> None:
        self.slurm.wait(self.ids[name], set(states), timeout_s, *self.logs)

    def wait_for_step(self, step: int) -> None:
        """Until the run has logged a step."""

        def reached() -> bool:
            path = self.run / "metrics.jsonl"
            return path.is_file() and max(metrics(self.run), default=0) >= step

        wait_for(reached, START_S, lambda: self.slurm.logs(*self.logs), f"step {step}")

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            is_ours = str(self.run).encode() in words
            if is_ours and any(one.startswith(b"LOCAL_RANK=") for one in environment):
                found.append(int(folder.name))
        return sorted(found)

    def finished(self, reference: dict[int, float]) -> None:
        """The run ended with the losses of the uninterrupted one, and the next step ran."""
        self.wait("train", "COMPLETED", timeout_s=2 * START_S)
        self.wait("after", "COMPLETED")
        assert metrics(self.run) == reference, self.slurm.logs(*self.logs)
        assert (self.folder / "model" / "model.safetensors").is_file()
        assert (self.state("train"), self.state("after")) == (State.DONE, State.DONE)


@pytest.mark.parametrize("tasks", ["per_node", "per_rank"])
def test_f4_preempted_by_signal_a_run_requeues_itself(
    slurm: SlurmCluster,
    world: TinyWorld,
    config: ClusterConfig,
    reference: dict[int, float],
    tasks: str,
) -> None:
    import dataclasses

    job = Submitted(slurm, world, dataclasses.replace(config, tasks=tasks), f"preempted-{tasks}")
    job.wait_for_step(6)
    # What `#SBATCH --signal` does before the time limit: to the steps, not to the batch shell.
    command("scancel", "--signal=USR2", job.ids["train"])
    job.finished(reference)
    starts = [json.loads(line) for line in (job.run / "starts.jsonl").read_text().splitlines()]
    assert [start["ranks"] for start in starts] == [2, 2]
    assert starts[0]["from_step"] == 0
    assert 6 <= starts[1]["from_step"] < STEPS
    assert "requeueing (attempt 1 of 3)" in "".join(log.read_text() for log in job.logs)


def test_f4_a_rank_that_is_killed_fails_the_job_and_resubmission_goes_on(
    slurm: SlurmCluster, world: TinyWorld, config: ClusterConfig, reference: dict[int, float]
) -> None:
    job = Submitted(slurm, world, config, "killed")
    job.wait_for_step(7)
    ranks = job.ranks()
    assert len(ranks) == 2
    os.kill(ranks[-1], signal.SIGKILL)
    job.wait("train", "FAILED")
    # afterok: what rests on it never runs.
    job.wait("after", "CANCELLED")
    assert job.state("train") is State.FAILED
    assert job.state("after") is State.TO_DO
    assert job.ranks() == []
    job.submit()
    job.finished(reference)
    starts = [json.loads(line) for line in (job.run / "starts.jsonl").read_text().splitlines()]
    assert starts[1]["from_step"] >= 5


def test_f4_cancelled_and_submitted_again(
    slurm: SlurmCluster, world: TinyWorld, config: ClusterConfig, reference: dict[int, float]
) -> None:
    job = Submitted(slurm, world, config, "cancelled")
    job.wait_for_step(7)
    command("scancel", job.ids["train"])
    job.wait("train", "CANCELLED")
    job.wait("after", "CANCELLED")
    wait_for(lambda: job.ranks() == [], 60, lambda: slurm.logs(*job.logs), "no ranks left")
    assert not list((job.run / "export").glob("*"))
    job.submit()
    job.finished(reference)


def test_f4_a_node_drained_and_then_lost(
    slurm: SlurmCluster, world: TinyWorld, config: ClusterConfig, reference: dict[int, float]
) -> None:
    job = Submitted(slurm, world, config, "drained")
    try:
        job.wait_for_step(3)
        command("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=test")
        job.wait_for_step(6)  # a job that runs goes on
        command("scontrol", "update", "NodeName=node1", "State=DOWN", "Reason=test")
        job.wait("train", "PENDING")  # requeued by Slurm, and no node for it
        command("scontrol", "update", "NodeName=node1", "State=RESUME")
        job.finished(reference)
    finally:
        command("scontrol", "update", "NodeName=node1", "State=RESUME")
    starts = [json.loads(line) for line in (job.run / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2
