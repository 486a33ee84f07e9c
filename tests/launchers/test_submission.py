"""Submitting scripts to Slurm: job ids, what is queued already, and what is not done yet."""

from pathlib import Path

import pytest
import yaml
from helpers.slurm_stand_ins import CACHE, CLUSTER, TRAIN, executable

from launchers.jobs import JobBook, Queued, read_squeue, submission
from launchers.pipeline import load_pipeline, pipeline_steps
from launchers.slurm import make_jobs, submit
from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Step, digests
from trainer.cli.main import main
from trainer.errors import TinyNewsRecError, UsageError


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
    assert "post-train: the output was made by another command" in said
    assert f"Move {step.output} aside" in said
    assert len((slurm / "sbatch").read_text().splitlines()) == 1


def test_two_submissions_at_once_do_not_lose_each_other_s_jobs(slurm: Path):
    folder = slurm / "pipeline"
    with submission(folder) as (book, queued):
        assert queued == {}
        with (
            pytest.raises(UsageError, match="another submission is running"),
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


def test_without_sbatch_nothing_is_submitted(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(TinyNewsRecError, match="there is no sbatch on this machine"),
        submission(tmp_path / "p"),
    ):
        pass
    assert not (tmp_path / "p").exists()
