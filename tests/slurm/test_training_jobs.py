"""Post-training over two nodes on a real Slurm, and everything that can end such a job early."""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.launch import metrics
from helpers.slurm_cluster import SlurmCluster, SlurmError
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, TinyWorld, make_world

from launchers.jobs import JobBook
from launchers.pipeline import overrides
from launchers.slurm import ClusterConfig, make_jobs, submit
from launchers.steps import Resources, Step, digests
from trainer.cli.main import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 600
START_S = 120
"""Two processes import torch and deepspeed on a machine that others use too."""
END_S = 150
FAIL_S = 60
"""A job whose rank was killed has failed within this time."""
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
CLUSTER = ClusterConfig(
    python=sys.executable,
    network_interface="lo",
    env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
)


class Jobs:
    """Submits steps and watches their jobs; a folder whose name has a space holds it all."""

    def __init__(self, cluster: SlurmCluster, world: TinyWorld, folder: Path) -> None:
        self.cluster = cluster
        self.world = world
        self.folder = folder / "with space"

    def training(self, name: str, processes: int = 1) -> Step:
        settings = TINY_MODEL | {
            "data.articles": str(self.world.articles.path),
            "optimizer.lr": 1e-3,
            "optimizer.backbone_lr": 1e-3,
            "model.trainable_layers": None,
            # Masks of dropout belong to a rank; without them four ranks do what two do.
            "model.backbone.hidden_dropout": 0.0,
            "model.backbone.attention_dropout": 0.0,
            "run.dir": str(self.folder / name),
            "run.deepspeed": "zero2",
            "run.micro_batch": 4 // processes,
            "run.max_steps": STEPS,
            "run.copies.rule": "list",
            "run.copies.steps": [STEPS],
            "run.epochs": 1000,
            "run.log_every": 1,
            "run.checkpoint_every": 80,
        }
        words = ("tnr", "train", "post_train", *overrides(settings))
        resources = Resources(nodes=2, processes=processes, cpus=processes, minutes=10)
        return Step(name=name, command=words, resources=resources)

    def submit(self, *steps: Step, cluster: ClusterConfig = CLUSTER) -> list[str]:
        known = digests(steps)
        jobs = make_jobs(steps, cluster, self.folder / "pipeline", known)
        folder = self.folder / "pipeline"
        return list(submit(jobs, folder, JobBook(folder), {}).values())

    def wait(self, happened: Callable[[], bool], seconds: float, what: str) -> None:
        try:
            self.cluster.wait_until(happened, seconds, what)
        except SlurmError as error:
            pytest.fail(f"{error}\n{self.logs()}")

    def logs(self) -> str:
        """The ends of the jobs' logs."""
        paths = sorted(self.folder.rglob("*.slurm.log"))
        return "\n".join(f"---- {path.name}\n{path.read_text()[-3000:]}" for path in paths)

    def wait_for_state(self, number: str, state: str, seconds: float) -> None:
        def happened() -> bool:
            found = self.cluster.state(number)
            if found in ENDS and found != state:
                pytest.fail(f"{number} is {found}, not {state}\n{self.logs()}")
            return found == state

        self.wait(happened, seconds, f"{number} is {state}")

    def last_step(self, name: str) -> int:
        path = self.folder / name / "metrics.jsonl"
        try:
            return max(metrics(self.folder / name)) if path.exists() else 0
        except (ValueError, KeyError):
            return 0  # a line is being written

    def wait_for_step(self, name: str, step: int) -> None:
        self.wait(lambda: self.last_step(name) >= step, START_S, f"{name} reached step {step}")

    def environment(self, process: int) -> set[str]:
        """The variables of a process, as ``NAME=value``."""
        return set(Path(f"/proc/{process}/environ").read_text(errors="replace").split("\0"))

    def ranks(self, number: str, node: str) -> list[int]:
        """Process ids of a job's ranks on one node, from their environments."""
        return self.processes(number, node, "LOCAL_RANK=")

    def processes(self, number: str, node: str, variable: str) -> list[int]:
        """Process ids of a job on one node whose environment has a variable (``NAME=``)."""
        wanted = {f"SLURM_JOB_ID={number}", f"SLURMD_NODENAME={node}"}
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                variables = self.environment(int(folder.name))
            except OSError:
                continue  # it ended while we looked
            if wanted <= variables and any(v.startswith(variable) for v in variables):
                found.append(int(folder.name))
        return found

    def stamp(self, name: str) -> dict:
        return json.loads((self.folder / "pipeline" / f"{name}.json").read_text())

    def checkpoints(self, name: str) -> list[str]:
        folder = self.folder / name / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"), 80, 40)


@pytest.fixture(scope="module")
def jobs(
    slurm_cluster: SlurmCluster, world: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> Jobs:
    return Jobs(slurm_cluster, world, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def losses(jobs: Jobs) -> dict[int, float]:
    """Losses of a run that nothing disturbs, over two nodes, submitted with `tnr launch slurm`."""
    file = jobs.folder / "cluster.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    given = {"python": CLUSTER.python, "network_interface": "lo", "env": dict(CLUSTER.env)}
    file.write_text(yaml.safe_dump(given))
    words = ["--nodes", "2", "--cpus", "1", "--minutes", "10", "--cluster", str(file)]
    words += jobs.training("undisturbed").command[2:]
    book = jobs.folder / "undisturbed" / "launch"
    assert main(["launch", "slurm", *words]) == 0
    number = JobBook(book).jobs["train"].job
    assert main(["launch", "slurm", *words]) == 0  # it is queued: nothing is submitted
    assert JobBook(book).jobs["train"].job == number
    jobs.wait_for_state(number, "COMPLETED", START_S + END_S)
    found = metrics(jobs.folder / "undisturbed")
    assert sorted(found) == list(range(1, STEPS + 1))
    return found


def test_a_preempted_job_requeues_itself_and_ends_with_the_same_losses(
    jobs: Jobs, losses: dict[int, float]
):
    (number,) = jobs.submit(jobs.training("preempted"))
    nodes = ("node0", "node1")
    jobs.wait(
        lambda: all(jobs.processes(number, node, "SLURM_PROCID=") for node in nodes),
        START_S,
        "both tasks were started",
    )
    jobs.cluster.run("scancel", "--signal=USR2", number)  # while Python is being started
    jobs.wait(lambda: jobs.cluster.job(number)["Restarts"] == "1", 60, "it was requeued")
    assert jobs.last_step("preempted") == 0
    jobs.wait_for_step("preempted", 20)
    jobs.cluster.run("scancel", "--signal=USR2", number)  # as --signal does before the time limit
    jobs.wait(lambda: jobs.cluster.job(number)["Restarts"] == "2", 60, "it was requeued again")
    assert jobs.last_step("preempted") < STEPS, "it ended before the signal"
    jobs.wait_for_state(number, "COMPLETED", START_S + END_S)
    assert metrics(jobs.folder / "preempted") == pytest.approx(losses, abs=1e-6)
    stamp = jobs.stamp("preempted")
    assert (stamp["state"], stamp["job"], stamp["attempt"]) == ("done", number, 3)
    assert stamp["nodes"] == "node[0-1]"


def test_a_killed_rank_and_a_cancelled_job_cost_only_the_steps_since_the_checkpoint(
    jobs: Jobs, losses: dict[int, float]
):
    training = jobs.training("killed")
    small = Resources(cpus=1, minutes=5)
    after = Step(
        name="after", command=("tnr", "train", "--settings"), needs=("killed",), resources=small
    )
    number, dependent = jobs.submit(training, after)
    jobs.wait_for_step("killed", 100)
    assert jobs.stamp("killed")["state"] == "running"
    (rank,) = jobs.ranks(number, "node1")
    os.kill(rank, signal.SIGKILL)
    started = time.monotonic()
    jobs.wait_for_state(number, "FAILED", FAIL_S)
    assert jobs.cluster.job(number)["Restarts"] == "0"
    print(f"the job failed {time.monotonic() - started:.1f} s after its rank was killed")
    jobs.wait_for_state(dependent, "CANCELLED", 30)
    assert jobs.stamp("killed")["state"] == "failed"
    assert not (jobs.folder / "pipeline" / "after.json").exists()
    assert jobs.checkpoints("killed"), "nothing to go on from"

    reached = jobs.last_step("killed")
    (number,) = jobs.submit(training)
    jobs.wait_for_step("killed", reached + 40)
    jobs.cluster.run("scancel", number)
    jobs.wait_for_state(number, "CANCELLED", 60)
    jobs.wait(lambda: jobs.stamp("killed")["state"] == "stopped", 30, "the job stamped its end")
    assert not (jobs.folder / "killed" / "export").exists()

    (number,) = jobs.submit(training)
    jobs.wait_for_state(number, "COMPLETED", START_S + END_S)
    assert metrics(jobs.folder / "killed") == pytest.approx(losses, abs=1e-6)


def test_a_drained_node_keeps_its_job_and_a_lost_one_has_it_requeued(
    jobs: Jobs, losses: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = tmp_path / "module"  # stands for a cluster's own
    module.write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/modules"\n')
    module.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster = dataclasses.replace(
        CLUSTER,
        tasks="per_rank",
        modules=("gcc/12",),
        setup=("export TNR_TEST_SETUP=1",),
        container=("env", "TNR_TEST_CONTAINER=1"),
    )
    (number,) = jobs.submit(jobs.training("drained", processes=2), cluster=cluster)
    jobs.wait_for_step("drained", 20)
    ranks = [rank for node in ("node0", "node1") for rank in jobs.ranks(number, node)]
    found = [jobs.environment(rank) for rank in ranks]
    inside = [v for v in found if {"TNR_TEST_SETUP=1", "TNR_TEST_CONTAINER=1"} <= v]
    assert {f"RANK={rank}" for rank in range(4)} <= set.union(*inside)
    assert (tmp_path / "modules").read_text() == "load gcc/12\n"
    node = ("scontrol", "update", "NodeName=node1")
    jobs.cluster.run(*node, "State=DRAIN", "Reason=test")
    try:
        jobs.wait_for_step("drained", jobs.last_step("drained") + 20)  # it goes on
        jobs.cluster.run(*node, "State=DOWN", "Reason=test")
        jobs.cluster.kill_node("node1")
        jobs.wait(lambda: jobs.cluster.job(number)["Restarts"] == "1", 60, "it was requeued")
        assert jobs.last_step("drained") < STEPS, "it ended before the node was lost"
    finally:
        jobs.cluster.start_node("node1")
        jobs.cluster.run(*node, "State=RESUME")
    jobs.wait_for_state(number, "COMPLETED", START_S + END_S)
    # Four ranks instead of two: the same samples, summed in another order.
    assert metrics(jobs.folder / "drained") == pytest.approx(losses, abs=1e-3)
    assert jobs.stamp("drained")["attempt"] == 2


def test_a_killed_task_of_an_array_is_requeued_and_each_teacher_is_stored_once(jobs: Jobs):
    models = [jobs.world.teacher("post_train", seed) for seed in (1, 2, 3, 4)]
    articles = str(jobs.world.articles.path)
    step = Step(
        name="cache",
        command=("tnr", "teachers", "cache", "--stage", "1", "--articles", articles),
        array=tuple(("--models", model) for model in models),
        resources=Resources(cpus=1, minutes=10),
    )
    (number,) = jobs.submit(step)
    stamp = jobs.folder / "pipeline" / "cache.task-0.json"
    jobs.wait(stamp.exists, 60, "task 0 started")
    jobs.cluster.run("scontrol", "requeue", f"{number}_0")
    jobs.wait(
        lambda: all(
            jobs.cluster.state(f"{number}_{task}") == "COMPLETED" for task in range(len(models))
        ),
        START_S + 60,
        "all tasks completed",
    )
    assert [jobs.stamp(f"cache.task-{task}")["attempt"] for task in range(4)] == [2, 1, 1, 1]
    columns = list((jobs.world.articles.path / "columns").glob("teacher-text-*"))
    assert len(columns) == len(models)
    assert all((column / "column.json").is_file() for column in columns)


def test_a_step_that_fails_keeps_its_dependents_from_running(jobs: Jobs):
    resources = Resources(cpus=1, minutes=5)
    broken = Step(name="broken", command=("tnr", "evaluate", "nothing"), resources=resources)
    words = ("tnr", "report", "nothing")
    next_one = Step(name="next", command=words, needs=("broken",), resources=resources)
    last = Step(name="last", command=words, needs=("next",), resources=resources)
    numbers = jobs.submit(broken, next_one, last)
    jobs.wait_for_state(numbers[0], "FAILED", 60)
    for number in numbers[1:]:
        jobs.wait_for_state(number, "CANCELLED", 30)
    assert jobs.stamp("broken")["exit_code"] == 2
    assert not (jobs.folder / "pipeline" / "next.json").exists()
