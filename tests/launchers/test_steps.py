"""Steps as data: order, choice, digests, stamps, and the estimate of what is left."""

import json
from pathlib import Path

import pytest

from launchers.estimate import Estimate
from launchers.jobs import JobBook
from launchers.mark import main as mark
from launchers.stamps import Stamp, Stamps, State
from launchers.steps import Resources, Step, choose, digests, in_order
from shards.errors import TinyNewsRecError, UsageError


def step(name: str, *needs: str, command: str = "run", **more) -> Step:
    return Step(name=name, command=("tnr", command, name), needs=needs, **more)


def test_order_keeps_the_given_one_where_it_can():
    steps = [step("c", "a"), step("a"), step("b")]
    assert [s.name for s in in_order(steps)] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("a"), step("a")], "two steps are called a"),
        ([step("a", "x")], "a needs x, which is not a step"),
        ([step("a", "b"), step("b", "a"), step("c")], "need each other: a, b"),
    ],
)
def test_steps_that_cannot_be_ordered(steps, message):
    with pytest.raises(UsageError, match=message):
        in_order(steps)


def test_choice_of_one_or_of_one_with_its_needs():
    steps = [step("a"), step("b"), step("c", "a"), step("d", "c"), step("e", "d", "b")]
    assert [s.name for s in choose(steps)] == ["a", "b", "c", "d", "e"]
    assert [s.name for s in choose(steps, only="d")] == ["d"]
    assert [s.name for s in choose(steps, until="d")] == ["a", "c", "d"]
    with pytest.raises(UsageError, match="no step is called x; expected one of a, b"):
        choose(steps, until="x")


def test_digest_covers_the_command_and_everything_before_it_but_no_resources():
    steps = [step("a"), step("b", "a"), step("c")]
    before = digests(steps)
    changed = digests([step("a", command="other"), *steps[1:]])
    assert changed["a"] != before["a"]
    assert changed["b"] != before["b"]
    assert changed["c"] == before["c"]
    assert digests([step("a", resources=Resources(nodes=4)), *steps[1:]]) == before
    assert digests([step("a", array=(("x",),)), *steps[1:]])["b"] != before["b"]


def test_tasks_of_an_array_are_the_command_with_each_of_its_words():
    several = step("a", array=(("--models", "x"), ("--models", "y")))
    assert several.tasks() == [
        ("tnr", "run", "a", "--models", "x"),
        ("tnr", "run", "a", "--models", "y"),
    ]
    assert step("a").tasks() == [("tnr", "run", "a")]


def stamp(name: str, digest: str, state: State, code: int = 0) -> Stamp:
    return Stamp(name, digest, state, "tnr", 10.0, 12.5, code)


def test_state_follows_stamp_proof_and_digest(tmp_path: Path):
    proof, output = tmp_path / "made-1.txt", tmp_path / "out"
    one = step("a", proof=(str(tmp_path / "made-*.txt"),), output=str(output))
    stamps = Stamps(tmp_path / "pipeline")
    assert stamps.state(one, "d") is State.TO_DO
    stamps.write(one, stamp("a", "d", State.DONE))
    assert stamps.state(one, "d") is State.TO_DO  # nothing proves it
    proof.touch()
    assert stamps.state(one, "d") is State.DONE
    assert stamps.read(one) == stamp("a", "d", State.DONE)
    assert stamps.read(one).seconds == 2.5
    assert stamps.state(one, "other") is State.TO_DO  # another command, but nothing in its way
    output.mkdir()
    assert stamps.state(one, "other") is State.STALE
    stamps.write(one, stamp("a", "d", State.FAILED, 1))
    assert stamps.state(one, "d") is State.FAILED


def test_a_damaged_stamp_counts_as_none(tmp_path: Path):
    stamps = Stamps(tmp_path)
    fine = stamp("a", "d", State.DONE).to_dict()
    wrong = [
        {"step": 1},
        {"state": "over"},
        {"start": "now"},
        {"exit_code": "0"},
        {"attempt": None},
    ]
    for text in ('{"step": "a"}', "[]", "{", "[" * 9000, *(json.dumps(fine | w) for w in wrong)):
        (tmp_path / "a.json").write_text(text)
        assert stamps.read(step("a")) is None
    (tmp_path / "a.json").write_text(json.dumps(fine))
    assert stamps.read(step("a")) == stamp("a", "d", State.DONE)
    (tmp_path / "slurm").mkdir()
    for text in ("{", '{"a": 1}', '{"a": {"job": 1, "digest": "d"}}'):
        (tmp_path / "slurm" / "jobs.json").write_text(text)
        with pytest.raises(TinyNewsRecError, match="look with squeue, then delete the file"):
            JobBook(tmp_path)


def test_jobs_of_an_array_stamp_their_tasks_and_all_must_be_done(tmp_path: Path):
    several = step("a", array=(("x",), ("y",)))
    stamps = Stamps(tmp_path)
    words = ["--folder", str(tmp_path), "--step", "a", "--digest", "d", "--start", "5"]
    assert mark([*words, "--task", "0", "--exit-code", "0"]) == 0
    assert stamps.state(several, "d") is State.TO_DO
    assert mark([*words, "--task", "1", "--exit-code", "75"]) == 0
    assert stamps.state(several, "d") is State.STOPPED
    assert mark([*words, "--task", "1", "--exit-code", "1"]) == 0
    assert stamps.state(several, "d") is State.FAILED
    assert mark([*words, "--task", "1", "--exit-code", "0"]) == 0
    assert stamps.state(several, "d") is State.DONE
    assert stamps.state(several, "other") is State.TO_DO
    stamps.write(several, stamp("a", "d", State.FAILED, 1))  # of a run on this machine
    assert stamps.state(several, "d") is State.DONE


def test_a_job_s_tasks_replace_the_stamp_of_an_earlier_run_here(tmp_path: Path):
    several = step("a", array=(("x",), ("y",)))
    stamps = Stamps(tmp_path)
    stamps.write(several, stamp("a", "d", State.STOPPED, 75))
    words = ["--folder", str(tmp_path), "--step", "a", "--digest", "d", "--start", "5"]
    assert mark([*words, "--task", "1"]) == 0
    assert stamps.state(several, "d") is State.RUNNING
    assert mark([*words, "--task", "1", "--exit-code", "1"]) == 0
    assert stamps.state(several, "d") is State.FAILED
    stamps.write(several, stamp("a", "d", State.DONE))  # then run here to its end
    assert stamps.state(several, "d") is State.DONE


def test_estimate_takes_the_mean_of_a_kind_then_of_all():
    estimate = Estimate()
    train = Step(name="t1", command=("tnr", "train", "finetune", "--run.seed", "1"))
    again = Step(name="t2", command=("tnr", "train", "finetune", "--run.seed", "2"))
    other = Step(name="o", command=("tnr", "evaluate", "x"))
    assert other.kind == Step(name="p", command=("tnr", "evaluate", "y")).kind
    assert estimate.left([train]) == "time left not known yet"
    estimate.done(train, 10.0)
    estimate.done(again, 20.0)
    assert estimate.seconds(train) == 15.0
    estimate.done(other, 60.0)
    assert estimate.seconds(Step(name="x", command=("tnr", "report", "y"))) == 30.0
    assert estimate.left([train, other]) == "about 1 min 15 s left"
