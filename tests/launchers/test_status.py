"""What `tnr pipeline status` makes of stamps, of known jobs, and of the answer of squeue."""

import json
from pathlib import Path

import pytest

from launchers.jobs import JobBook, read_squeue
from launchers.stamps import Stamp, Stamps, State
from launchers.status import Row, status_rows, table
from launchers.steps import Step, digests
from trainer.errors import TinyNewsRecError


@pytest.fixture
def steps(tmp_path: Path) -> list[Step]:
    train = Step(name="a", command=("tnr", "train", "x"), output=str(tmp_path / "run"))
    cache = Step(name="b", command=("tnr", "x"), needs=("a",), array=(("1",), ("2",), ("3",)))
    return [train, cache, Step(name="c", command=("tnr", "y"), needs=("b",))]


def rows(steps: list[Step], folder: Path, squeue: str | None) -> dict[str, Row]:
    asked = None if squeue is None else read_squeue(squeue)
    return {row.step: row for row in status_rows(steps, digests(steps), folder, asked)}


def stamp(steps: list[Step], n: int, folder: Path, state: State, task: int | None = None) -> None:
    end = None if state is State.RUNNING else 9.0
    digest = digests(steps)[steps[n].name]
    written = Stamp(steps[n].name, digest, state, "", 2.0, end, job="7", attempt=2)
    Stamps(folder).write(steps[n], written, task)


def submitted(steps: list[Step], folder: Path) -> None:
    book = JobBook(folder)
    for number, step in enumerate(steps, start=7):
        book.note(step, str(number), digests(steps)[step.name])


def test_a_running_training_shows_its_step_and_loss(steps: list[Step], tmp_path: Path):
    submitted(steps, tmp_path)
    stamp(steps, 0, tmp_path, State.RUNNING)
    run = tmp_path / "run"
    run.mkdir()
    (run / "state.json").write_text(json.dumps({"state": "running", "step": 100, "steps": 500}))
    lines = ['{"step": 119, "train/loss": 0.5}', '{"step": 120, "train/loss": 0.25}', '{"st']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    found = rows(
        steps, tmp_path, "7 RUNNING 1 None\n8 PENDING 0 Dependency\n9 PENDING 0 Priority\n"
    )
    assert (found["a"].state, found["a"].requeued) == ("running", 1)
    assert found["a"].progress == "step 120/500, loss 0.2500"
    assert (found["c"].state, found["c"].reason) == ("queued", "Priority")
    assert "queued (Priority)" in table(list(found.values()))
    assert "running, requeued 1 time " in table(list(found.values()))


def test_an_array_shows_its_done_tasks_and_a_lost_job_is_cancelled(
    steps: list[Step], tmp_path: Path
):
    submitted(steps, tmp_path)
    stamp(steps, 0, tmp_path, State.STOPPED)
    for task in (0, 2):
        stamp(steps, 1, tmp_path, State.DONE, task)
    found = rows(steps, tmp_path, "8 PENDING 0 Resources\n")
    assert found["a"].state == "stopped"  # its requeues are spent
    assert (found["b"].progress, found["b"].state) == ("2/3 tasks", "queued")
    assert found["c"].state == "cancelled"  # it never ran: what it needs did not end well
    stamp(steps, 0, tmp_path, State.RUNNING)
    assert rows(steps, tmp_path, "")["a"].state == "cancelled"  # it was killed


def test_without_slurm_the_stamps_speak(steps: list[Step], tmp_path: Path):
    submitted(steps, tmp_path)
    stamp(steps, 0, tmp_path, State.FAILED)
    found = rows(steps, tmp_path, None)
    assert (found["a"].state, found["a"].seconds) == ("failed", 7.0)
    assert found["c"].state == "to do"


def test_a_damaged_list_of_jobs_does_not_pass_for_none(tmp_path: Path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.json").write_text('{"a": 1}')
    with pytest.raises(TinyNewsRecError, match="some queued jobs may be unknown"):
        JobBook(tmp_path)


def test_the_progress_is_that_of_the_newest_checkpoint(steps: list[Step], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000008").mkdir(parents=True)
    (run / "state.json").write_text('{"state": "running", "step": 4, "steps": 20}')
    (run / "metrics.jsonl").write_text('{"step": 5, "train/loss": 0.5}\n')
    assert rows(steps, tmp_path, None)["a"].progress == "step 8/20, loss 0.5000"


def test_what_others_wrote_is_shown_on_one_line_without_keys() -> None:
    said = "s3://ID:S3CRET@bucket\n\x1b[2J"
    one = dict.fromkeys(("step", "job", "state", "reason", "progress", "log"), said)
    text = table([Row(**one, requeued=0, seconds=None)])
    assert len(text.splitlines()) == 2
    assert "S3CRET" not in text and "\x1b" not in text
