"""Slurm scripts: golden text, and the scripts really run by bash against stand-ins for Slurm.

After a deliberate change of the scripts, run these tests with ``TNR_WRITE_GOLDEN=1`` and look at
the difference.
"""

import dataclasses
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import launchers
from launchers.jobs import JobBook, Queued, read_squeue, submission
from launchers.pipeline import load_pipeline, pipeline_steps
from launchers.slurm import ClusterConfig, load_cluster, make_job, make_jobs, render, submit
from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Resources, Step, digests
from trainer.cli.main import main
from trainer.errors import ConfigError, TinyNewsRecError, UsageError

PER_RANK = ClusterConfig(
    tasks="per_rank",
    modules=("cuda/12.4", "gcc"),
    container=("apptainer", "exec", "--bind", "/data set", "tnr.sif"),
    srun=("--mpi=none",),
    network_interface="ib0",
)
GOLDEN = Path(__file__).parent / "golden"
PYTHONPATH = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])
TEMPLATE = Path(launchers.__file__).parent / "templates" / "cluster.yaml"
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


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


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


def test_a_script_runs_its_command_and_stamps_it(slurm: Path):
    step = Step(name="a", command=("tnr", "write", str(slurm / "out.txt"), "two  words"))
    done = run_script(step, slurm)
    assert done.returncode == 0, done.stderr
    assert (slurm / "out.txt").read_text() == "two  words\n"
    assert (stamp(slurm, "a")["state"], stamp(slurm, "a")["digest"]) == ("done", "d")


def test_a_task_of_an_array_adds_its_own_words(slurm: Path):
    array = (("zero",), ("one", "more"))
    step = Step(name="a", command=("tnr", "write", str(slurm / "out.txt")), array=array)
    done = run_script(step, slurm, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="6")
    assert done.returncode == 0, done.stderr
    assert (slurm / "out.txt").read_text() == "one more\n"
    assert stamp(slurm, "a.task-1")["state"] == "done"


def test_a_failure_is_stamped_and_passed_on(slurm: Path):
    done = run_script(Step(name="a", command=("tnr", "fail", "3")), slurm)
    assert done.returncode == 3
    assert (stamp(slurm, "a")["state"], stamp(slurm, "a")["exit_code"]) == ("failed", 3)
    assert not (slurm / "scontrol").exists()


def test_a_checkpointed_stop_is_requeued_within_the_budget(slurm: Path):
    step = Step(name="a", command=("tnr", "fail", "75"))
    assert run_script(step, slurm).returncode == 75
    assert (slurm / "scontrol").read_text() == "requeue 7\n"
    assert stamp(slurm, "a")["state"] == "stopped"
    last = run_script(step, slurm, SLURM_RESTART_COUNT="2")
    assert last.returncode == 75 and "all 2 requeues are spent" in last.stderr
    assert (slurm / "scontrol").read_text() == "requeue 7\n"  # the budget is spent
    assert stamp(slurm, "a")["state"] == "stopped"


def test_a_command_that_dies_of_the_signal_while_it_starts_is_requeued(slurm: Path):
    step = Step(name="a", command=("tnr", "train", "fail", "140"))  # 128 + USR2
    done = run_script(step, slurm)
    assert done.returncode == 75, done.stderr
    assert (slurm / "scontrol").read_text() == "requeue 7\n"
    assert stamp(slurm, "a")["state"] == "stopped"


def test_a_step_that_could_only_start_over_fails_at_its_time_limit(slurm: Path):
    done = run_script(Step(name="a", command=("tnr", "fail", "140")), slurm)
    assert done.returncode == 1
    assert "ended by the signal 180 s before its time limit" in done.stderr
    assert not (slurm / "scontrol").exists()
    assert (stamp(slurm, "a")["state"], stamp(slurm, "a")["exit_code"]) == ("failed", 1)


def test_a_time_limit_that_ends_before_its_signal_is_refused():
    short = Step(name="a", command=("tnr", "x"), resources=Resources(minutes=3))
    with pytest.raises(ConfigError, match=r"step a: cluster\.signal_s is 180, expected less"):
        make_job(short, ClusterConfig(), FOLDER, "d")
    assert "USR2@179" in make_job(short, ClusterConfig(signal_s=179), FOLDER, "d").script


def test_a_job_that_slurm_does_not_requeue_is_stamped_as_stopped(slurm: Path):
    (slurm / "no-requeue").touch()
    done = run_script(Step(name="a", command=("tnr", "fail", "75")), slurm)
    assert done.returncode == 75
    assert "did not requeue" in done.stderr
    assert stamp(slurm, "a")["state"] == "stopped"


def test_ranks_start_under_torchrun_with_the_job_s_own_port(slurm: Path):
    step = Step(
        name="a", command=("tnr", "rank", str(slurm / "rank")), resources=Resources(processes=2)
    )
    done = run_script(step, slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(slurm / f"rank.{n}").read_text() for n in (0, 1)} == {"0 of 2", "1 of 2"}


def test_submission_passes_job_ids_on(slurm: Path):
    jobs = make_jobs([TRAIN, CACHE], CLUSTER, slurm / "pipeline", digests([TRAIN, CACHE]))
    assert submit(jobs, slurm / "pipeline", JobBook(slurm / "pipeline"), {}) == {
        "post-train": "101",
        "cache-1": "102",
    }
    lines = (slurm / "sbatch").read_text().splitlines()
    assert lines[1] == (
        f"--parsable --dependency=afterok:101 {slurm}/pipeline/slurm/cache-1.sbatch"
    )
    assert (slurm / "pipeline/slurm/cache-1.sbatch").read_text() == jobs[1].script


def test_what_is_queued_is_not_submitted_again_and_is_waited_for(slurm: Path):
    folder = slurm / "pipeline"
    known = digests([TRAIN, CACHE])
    submit(make_jobs([TRAIN], CLUSTER, folder, known), folder, JobBook(folder), {})
    text = "101  RUNNING  2  None\n7 PENDING 0 Priority\n"
    book = JobBook(folder)
    queued = book.queued(read_squeue(text))
    assert queued == {"post-train": "101"}
    jobs = make_jobs([TRAIN, CACHE], CLUSTER, folder, known)
    assert submit(jobs, folder, book, queued) == {"cache-1": "102"}
    assert "--dependency=afterok:101 " in (slurm / "sbatch").read_text().splitlines()[1]
    assert JobBook(folder).queued(read_squeue("")) == {}  # both have ended


def test_a_queued_step_of_other_settings_is_not_passed_over(slurm: Path):
    folder = slurm / "pipeline"
    book = JobBook(folder)
    book.note(TRAIN, "101", "another digest")
    jobs = make_jobs([TRAIN], CLUSTER, folder, digests([TRAIN]))
    with pytest.raises(
        TinyNewsRecError, match="other settings than now; end it first: scancel 101"
    ):
        submit(jobs, folder, book, {"post-train": "101"})


def test_only_tasks_that_are_not_done_are_submitted_again(slurm: Path, capsys):
    config, folder = slurm / "small.yaml", slurm / "run" / "pipeline"
    content = {"run": str(slurm / "run"), "data": {"synthesize": {}}, "teachers": {"count": 6}}
    config.write_text(yaml.safe_dump(content))
    steps = pipeline_steps(load_pipeline(config))
    (step,) = (step for step in steps if step.name == "cache-1")
    digest, stamps = digests(steps)["cache-1"], Stamps(folder)
    script = folder / "slurm" / "cache-1.sbatch"

    def submitted(ended: dict[int, State], digest: str = digest) -> str:
        """The tasks of the array that is submitted after tasks have ended in these states."""
        for task, state in ended.items():
            stamps.write(step, Stamp("cache-1", digest, state, "", 1.0, 2.0), task)
        (folder / "slurm" / "jobs.json").unlink(missing_ok=True)  # Slurm has ended with all of it
        assert main(["pipeline", "submit", str(config), "--only", "cache-1"]) == 0
        (line,) = (li for li in script.read_text().splitlines() if "--array" in li)
        return line.removeprefix("#SBATCH --array=")

    assert submitted({}) == "0-5%8"
    assert "101  cache-1\n" in capsys.readouterr().out
    done = dict.fromkeys((0, 1, 3, 4), State.DONE)
    assert submitted({**done, 2: State.FAILED, 5: State.RUNNING}) == "2,5%8"  # 5 was lost
    assert "102  cache-1 (tasks 2, 5)\n1 jobs submitted" in capsys.readouterr().out
    assert submitted({4: State.DONE}, "of other settings") == "2,4,5%8"
    # All are stamped, but nothing proves it: the columns are gone.
    assert submitted(dict.fromkeys(range(6), State.DONE)) == "0-5%8"


def test_outputs_of_other_settings_are_not_taken_for_done(slurm: Path, capsys):
    config, run = slurm / "small.yaml", slurm / "run"

    def submit_with(**more) -> int:
        content = {"run": str(run), "data": {"synthesize": {}}, "set": more}
        config.write_text(yaml.safe_dump(content))
        return main(["pipeline", "submit", str(config), "--only", "post-train"])

    assert submit_with() == 0
    steps = pipeline_steps(load_pipeline(config))
    (step,) = (step for step in steps if step.name == "post-train")
    done = Stamp("post-train", digests(steps)["post-train"], State.DONE, "", 1.0, 2.0)
    Stamps(run / "pipeline").write(step, done)
    Path(step.proof[0]).parent.mkdir(parents=True)
    Path(step.proof[0]).touch()
    (run / "pipeline" / "slurm" / "jobs.json").unlink()  # Slurm has ended with it
    assert submit_with() == 0
    capsys.readouterr()
    assert submit_with(**{"optimizer.lr": 0.5}) == 2
    said = capsys.readouterr().err
    assert "post-train: made by another command" in said and f"Move {step.output} aside" in said
    assert len((slurm / "sbatch").read_text().splitlines()) == 1


def test_two_submissions_at_once_do_not_lose_each_other_s_jobs(slurm: Path):
    folder = slurm / "pipeline"
    with submission(folder) as (book, queued):
        assert queued == {}
        with (
            pytest.raises(UsageError, match="another submission is under way"),
            submission(folder),
        ):
            pass
        submit(make_jobs([TRAIN], CLUSTER, folder, digests([TRAIN])), folder, book, queued)
    executable(slurm / "bin" / "squeue", "#!/bin/bash\necho '101 RUNNING 0 None'\n")
    with submission(folder) as (_, queued):
        assert queued == {"post-train": "101"}


def test_an_array_s_tasks_are_read_together():
    text = "9 RUNNING 0 None\n9 PENDING 3 JobArrayTaskLimit\n"
    assert read_squeue(text)["9"] == Queued(("RUNNING", "PENDING"), "JobArrayTaskLimit", 3)


def test_a_refused_submission_names_what_went_before(slurm: Path):
    refused = Step(name="refused", command=("tnr", "x"), needs=("post-train",))
    jobs = make_jobs([TRAIN, refused], CLUSTER, slurm / "p", digests([TRAIN, refused]))
    with pytest.raises(TinyNewsRecError, match="no such partition; submitted before it: post-tr"):
        submit(jobs, slurm / "p", JobBook(slurm / "p"), {})


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


def test_of_an_array_the_task_alone_is_requeued(slurm: Path):
    step = Step(name="a", command=("tnr", "fail"), array=(("75",), ("75",)))
    done = run_script(step, slurm, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="6")
    assert done.returncode == 75, done.stderr
    assert (slurm / "scontrol").read_text() == "requeue 6_1\n"


def test_the_cluster_s_name_is_not_a_part_of_the_job_s_id(slurm: Path):
    executable(slurm / "bin" / "sbatch", "#!/bin/bash\necho '101;north'\n")
    jobs = make_jobs([TRAIN], CLUSTER, slurm / "p", digests([TRAIN]))
    assert submit(jobs, slurm / "p", JobBook(slurm / "p"), {}) == {"post-train": "101"}
    assert JobBook(slurm / "p").jobs["post-train"].job == "101"


def test_a_queue_that_is_unknown_is_not_taken_for_empty(slurm: Path):
    JobBook(slurm / "p").note(TRAIN, "101", "d")
    executable(slurm / "bin" / "squeue", "#!/bin/bash\necho 'slurmctld is down' >&2\nexit 1\n")
    with (
        pytest.raises(TinyNewsRecError, match="squeue failed: slurmctld is down"),
        submission(slurm / "p"),
    ):
        pass


def test_an_array_waits_for_what_its_pending_tasks_wait_for():
    found = read_squeue("9 PENDING 3 JobArrayTaskLimit\n9 RUNNING 0 None\n")["9"]
    assert found == Queued(("PENDING", "RUNNING"), "JobArrayTaskLimit", 3)
    assert found.runs
    assert not Queued(("PENDING", "PENDING"), "Priority", 0).runs


def test_a_note_keeps_the_jobs_before_it(tmp_path: Path):
    book = JobBook(tmp_path)
    book.note(TRAIN, "101", "d")
    book.note(CACHE, "102", "e")
    assert {name: job.job for name, job in JobBook(tmp_path).jobs.items()} == {
        "post-train": "101",
        "cache-1": "102",
    }
