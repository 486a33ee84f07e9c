"""Slurm scripts really run by bash, against stand-ins for Slurm."""

from pathlib import Path

from helpers.slurm_stand_ins import run_script, stamp

from launchers.steps import Resources, Step


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
    assert last.returncode == 75 and "all 2 requeues are used up" in last.stderr
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


def test_of_an_array_the_task_alone_is_requeued(slurm: Path):
    step = Step(name="a", command=("tnr", "fail"), array=(("75",), ("75",)))
    done = run_script(step, slurm, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="6")
    assert done.returncode == 75, done.stderr
    assert (slurm / "scontrol").read_text() == "requeue 6_1\n"
