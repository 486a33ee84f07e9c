"""Slurm scripts: golden text, and what would make other scripts of them.

After a deliberate change of the scripts, run these tests with ``TNR_WRITE_GOLDEN=1`` and look at
the difference.
"""

import dataclasses
import os
import shlex
from pathlib import Path

import pytest
from helpers.slurm_stand_ins import CACHE, CLUSTER, FOLDER, TRAIN

import launchers
from launchers.slurm import ClusterConfig, load_cluster, make_job, make_jobs, render
from launchers.steps import Resources, Step, digests
from trainer.errors import ConfigError

PER_RANK = ClusterConfig(
    tasks="per_rank",
    modules=("cuda/12.4", "gcc"),
    container=("apptainer", "exec", "--bind", "/data set", "tnr.sif"),
    srun=("--mpi=none",),
    network_interface="ib0",
)
GOLDEN = Path(__file__).parent / "golden"
TEMPLATE = Path(launchers.__file__).parent / "templates" / "cluster.yaml"


@pytest.mark.parametrize("step", [TRAIN, CACHE], ids=lambda step: step.name)
def test_scripts_are_the_golden_text(step: Step):
    script = make_job(step, CLUSTER, FOLDER, "0" * 64).script
    golden = GOLDEN / f"{step.name}.sbatch"
    if os.environ.get("TNR_WRITE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()


def test_a_script_of_one_task_a_rank_is_the_golden_text():
    script = make_job(TRAIN, PER_RANK, FOLDER, "0" * 64).script
    golden = GOLDEN / "post-train-per-rank.sbatch"
    if os.environ.get("TNR_WRITE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"partition": "gpu\n#SBATCH --account=other"}, "cluster.partition"),
        ({"directives": ("--exclude=a\nrm x",)}, "cluster.directives"),
        ({"directives": ("exclude=a",)}, "cluster.directives"),
        ({"setup": ("",)}, "cluster.setup"),
        ({"env": {"A B": "1"}}, "cluster.env"),
        ({"max_array_tasks": 0}, "cluster.max_array_tasks"),
    ],
)
def test_a_cluster_that_would_write_another_script_is_refused(settings: dict, place: str):
    with pytest.raises(ConfigError, match=place):
        ClusterConfig(**settings)


def test_the_cluster_template_is_a_cluster_file_that_names_every_key():
    cluster = load_cluster(TEMPLATE)
    assert cluster.tasks == "per_node"
    text = TEMPLATE.read_text()
    for field in dataclasses.fields(ClusterConfig):
        assert f"\n{field.name}:" in text, field.name


def test_a_mistake_in_a_cluster_file_is_named(tmp_path: Path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partitoin: gpu\n")
    with pytest.raises(ConfigError, match=r"cluster\.yaml: .*did you mean partition"):
        load_cluster(path)


def test_dependencies_name_only_jobs_that_are_submitted():
    jobs = make_jobs([TRAIN, CACHE], CLUSTER, FOLDER, digests([TRAIN, CACHE]))
    assert jobs[1].submit_words({"post-train": "41"}, Path("x"))[2] == "--dependency=afterok:41"
    assert jobs[1].submit_words({}, Path("x")) == ["sbatch", "--parsable", "x"]  # done already
    shown = render(jobs, FOLDER)
    assert "sbatch --parsable --dependency=afterok:<post-train> " in shown


def test_a_time_limit_that_ends_before_its_signal_is_refused():
    short = Step(name="a", command=("tnr", "x"), resources=Resources(minutes=3))
    with pytest.raises(ConfigError, match=r"step a: cluster\.signal_s is 180, expected less"):
        make_job(short, ClusterConfig(), FOLDER, "d")
    assert "USR2@179" in make_job(short, ClusterConfig(signal_s=179), FOLDER, "d").script


def test_words_with_spaces_and_shell_characters_stay_what_they_are():
    odd = "it's; $HOME `x`"
    step = Step(name="a", command=("tnr", "x", odd), array=((odd, "--b"),))
    cluster = ClusterConfig(python="/my env/python", env={"NOTE": odd}, container=("run it", "-x"))
    lines = make_job(step, cluster, Path("runs/a b"), "d").script.splitlines()

    def words(begin: str, end: str) -> list[str]:
        (line,) = (line for line in lines if line.strip().startswith(begin))
        return shlex.split(line.strip().removeprefix(begin).removesuffix(end))

    assert words("command=(", ")") == ["/my env/python", "-m", "trainer.cli.main", "x", odd]
    assert words("0) command+=(", ") ;;") == [odd, "--b"]
    assert words("mark=(", ")")[:5] == [
        "/my env/python",
        "-m",
        "launchers.mark",
        "--folder",
        "runs/a b",
    ]
    assert words("export NOTE=", "") == [odd]
    assert words("srun", "")[3:5] == ["run it", "-x"]
    assert words("#SBATCH --output=", "") == ["runs/a b/a-%A_%a.slurm.log"]


def test_modules_come_before_the_setup_and_the_environment_wins_over_the_interface():
    cluster = ClusterConfig(
        modules=("gcc",),
        setup=("source x",),
        network_interface="ib0",
        env={"NCCL_SOCKET_IFNAME": "e"},
    )
    script = make_job(Step(name="a", command=("tnr", "x")), cluster, FOLDER, "d").script
    assert script.index("module load gcc") < script.index("source x")
    assert "export GLOO_SOCKET_IFNAME=ib0\n" in script
    assert "export NCCL_SOCKET_IFNAME=e\n" in script
