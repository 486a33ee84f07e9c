"""Running steps here: skipping, stopping, failing, going on. A fake command line does the work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from launchers.local import LOCK, LocalOptions, StepFailed, is_running, run_steps
from launchers.ranks import children
from launchers.stamps import Stamps, State
from launchers.steps import Resources, Step, digests
from shards.errors import UsageError

FAKE = LocalOptions(module="helpers.fake_tnr")
PYTHONPATH = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])


def step(name: str, *words: object, needs: tuple[str, ...] = (), **more) -> Step:
    return Step(name=name, command=("tnr", *map(str, words)), needs=needs, **more)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def done(tmp_path: Path) -> Path:
    return tmp_path / "done.txt"


def test_steps_run_once_and_are_skipped_afterwards(tmp_path: Path, done: Path, capfd):
    steps = [
        step("b", "write", done, "b", needs=("a",), proof=(str(done),)),
        step("a", "print", "hello from a"),
        step("c", "write", done, array=(("c1",), ("c2",)), needs=("b",)),
    ]
    folder = tmp_path / "pipeline"
    assert run_steps(steps, folder, FAKE) == 0
    assert lines(done) == ["b", "c1", "c2"]
    said = capfd.readouterr().out
    assert "hello from a" in said
    assert "[1/3] a" in said
    assert "all 3 steps done" in said
    log = (folder / "a.log").read_text()
    assert "hello from a" in log
    assert "and on standard error" in log
    stamp = json.loads((folder / "b.json").read_text())
    assert (stamp["state"], stamp["exit_code"]) == ("done", 0)
    assert stamp["seconds"] >= 0

    assert run_steps(steps, folder, FAKE) == 0
    assert lines(done) == ["b", "c1", "c2"]
    assert "3 of 3 steps are done already" in capfd.readouterr().out
    done.unlink()  # what proves b is gone: b is run again, c keeps its stamp
    assert run_steps(steps, folder, FAKE) == 0
    assert lines(done) == ["b"]


def test_quiet_shows_only_the_pipeline_s_lines(tmp_path: Path, capfd):
    options = LocalOptions(module="helpers.fake_tnr", quiet=True)
    assert run_steps([step("a", "print", "hello")], tmp_path, options) == 0
    assert "hello" not in capfd.readouterr().out
    assert "hello" in (tmp_path / "a.log").read_text()


def test_a_failed_step_stops_the_pipeline_and_shows_its_log(tmp_path: Path, done: Path):
    steps = [
        step("a", "fail", 3),
        step("b", "write", done, "b", needs=("a",)),
        step("c", "write", done, "c"),
    ]
    with pytest.raises(StepFailed, match="step a ended with exit code 3") as caught:
        run_steps(steps, tmp_path, FAKE)
    assert "| it went wrong here" in str(caught.value)
    assert lines(done) == []
    with pytest.raises(StepFailed) as again:
        run_steps(steps, tmp_path, FAKE)
    assert str(again.value).count("| it went wrong here") == 1  # of this attempt alone
    assert (tmp_path / "a.log").read_text().count("it went wrong here") == 2  # of both
    assert Stamps(tmp_path).state(steps[0], digests(steps)["a"]) is State.FAILED
    steps[0] = step("a", "print", "mended")
    assert run_steps(steps, tmp_path, FAKE) == 0
    assert lines(done) == ["b", "c"]


def test_a_step_that_is_killed_or_proves_nothing_has_failed(tmp_path: Path):
    with pytest.raises(StepFailed, match="was killed by signal SIGKILL"):
        run_steps([step("a", "crash")], tmp_path / "1", FAKE)
    nothing = step("a", "print", "x", proof=(str(tmp_path / "made.txt"),))
    with pytest.raises(StepFailed, match=r"ended with exit code 0, but left no .*made\.txt"):
        run_steps([nothing], tmp_path / "2", FAKE)


def test_a_step_that_wants_to_be_started_again_stops_with_75(tmp_path: Path, done: Path, capfd):
    steps = [step("a", "fail", 75), step("b", "write", done, "b")]
    assert run_steps(steps, tmp_path, FAKE) == 75
    assert "stopped in a; run the same command again" in capfd.readouterr().out
    assert Stamps(tmp_path).state(steps[0], digests(steps)["a"]) is State.STOPPED
    assert lines(done) == []


def test_tasks_after_one_that_fails_do_not_run(tmp_path: Path, done: Path):
    array = (("fail", "3"), ("write", str(done), "second"))
    with pytest.raises(StepFailed, match="step a ended with exit code 3"):
        run_steps([Step(name="a", command=("tnr", "train"), array=array)], tmp_path, FAKE)
    assert lines(done) == []


def test_only_and_until(tmp_path: Path, done: Path):
    steps = [
        step("a", "write", done, "a"),
        step("b", "write", done, "b"),
        step("c", "write", done, "c", needs=("a",)),
    ]

    def run(**choice: str) -> int:
        return run_steps(steps, tmp_path, LocalOptions(module="helpers.fake_tnr", **choice))

    with pytest.raises(UsageError, match="c needs a, not done yet; --until c"):
        run(only="c")
    assert run(until="c") == 0
    assert lines(done) == ["a", "c"]
    assert run(only="b") == 0
    assert lines(done) == ["a", "c", "b"]


def test_what_another_command_made_is_not_used_in_silence(tmp_path: Path, done: Path, capfd):
    output = tmp_path / "out.txt"
    folder = tmp_path / "pipeline"
    first = step("a", "write", output, "old", output=str(output), proof=(str(output),))
    second = step("b", "write", done, "b", needs=("a",))
    assert run_steps([first, second], folder, FAKE) == 0
    changed = step("a", "write", output, "new", output=str(output), proof=(str(output),))
    with pytest.raises(UsageError, match="a: the output was made by another command"):
        run_steps([changed, second], folder, FAKE)
    assert lines(output) == ["old"]
    redo = LocalOptions(module="helpers.fake_tnr", redo=True)
    assert run_steps([changed, second], folder, redo) == 0
    assert lines(output) == ["new"]
    assert lines(tmp_path / "out.txt.old-1") == ["old"]
    assert lines(done) == ["b", "b"]  # it rests on a, so it was done again
    third = step("a", "write", output, "newest", output=str(output), proof=(str(output),))
    assert run_steps([third, second], folder, redo) == 0
    assert [lines(tmp_path / f"out.txt{end}") for end in ("", ".old-1", ".old-2")] == [
        ["newest"], ["old"], ["new"],
    ]  # fmt: skip


def test_a_look_at_the_lock_does_not_keep_a_pipeline_from_starting(tmp_path: Path):
    lock = FileLock(tmp_path / LOCK, thread_local=False)
    lock.acquire()  # as `tnr pipeline status` does for a moment
    looking = threading.Timer(0.2, lock.release)
    looking.start()
    assert run_steps([], tmp_path, FAKE) == 0
    looking.join()


def test_several_processes_are_ranks_of_torchrun(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    two = step("a", "rank", tmp_path / "rank", resources=Resources(processes=2))
    assert run_steps([two], tmp_path / "pipeline", FAKE) == 0
    assert (tmp_path / "rank.0").read_text() == "0 of 2"
    assert (tmp_path / "rank.1").read_text() == "1 of 2"


SCRIPT = """
import sys
from pathlib import Path
from launchers.local import LocalOptions, run_steps
from launchers.steps import Resources, Step

def main():
    folder, processes, verb = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    steps = [
        Step(name="a", command=("tnr", verb, str(folder / "flag")),
             resources=Resources(processes=processes)),
        Step(name="b", command=("tnr", "write", str(folder / "b.txt"), "b"), needs=("a",)),
    ]
    sys.exit(run_steps(steps, folder / "pipeline", LocalOptions(module="helpers.fake_tnr")))

if __name__ == "__main__":
    main()
"""


def start(folder: Path, processes: int = 1, verb: str = "wait") -> subprocess.Popen[str]:
    """A pipeline in a process of its own that waits in its first step."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(processes), verb],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, seconds: float = 60.0) -> Path:
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_checkpoint_and_ends_with_75(tmp_path: Path, number: int):
    pipeline = start(tmp_path)
    wait_for(tmp_path / "flag")
    assert is_running(tmp_path / "pipeline")
    with pytest.raises(UsageError, match="another pipeline is running"):
        run_steps([step("a", "print", "x")], tmp_path / "pipeline", FAKE)
    pipeline.send_signal(number)
    said, _ = pipeline.communicate(timeout=60)
    assert pipeline.returncode == 75, said
    assert "waiting for a to stop" in said
    assert "stopped in a; run the same command again" in said
    assert (tmp_path / "flag.checkpoint").read_text() == "SIGTERM"
    assert not (tmp_path / "b.txt").exists()
    assert not is_running(tmp_path / "pipeline")


def test_a_second_signal_kills_a_step_that_does_not_stop(tmp_path: Path):
    pipeline = start(tmp_path, verb="stay")
    wait_for(tmp_path / "flag")
    pipeline.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "flag.told")
    pipeline.send_signal(signal.SIGTERM)
    said, _ = pipeline.communicate(timeout=20)
    assert pipeline.returncode == 75, said
    assert not Path("/proc", (tmp_path / "flag").read_text()).exists()


def test_a_signal_reaches_every_rank_and_75_comes_back(tmp_path: Path):
    pipeline = start(tmp_path, processes=2)
    for rank in (0, 1):
        wait_for(tmp_path / f"flag{rank}")
    pipeline.send_signal(signal.SIGTERM)
    said, _ = pipeline.communicate(timeout=60)
    assert pipeline.returncode == 75, said
    got = {(tmp_path / f"flag{rank}.checkpoint").read_text() for rank in (0, 1)}
    assert got == {"SIGUSR2"}  # first of all: after TERM torchrun gives ranks only 30 s


def test_a_step_does_not_outlive_a_killed_pipeline(tmp_path: Path):
    pipeline = start(tmp_path)
    wait_for(tmp_path / "flag")
    pipeline.kill()
    pipeline.communicate(timeout=60)
    wait_for(tmp_path / "flag.checkpoint")


@pytest.mark.parametrize("name", ["sleep", "a) S 1 (b"])
def test_children_are_found_by_their_parent(tmp_path: Path, name: str):
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / name)
    sleeper = subprocess.Popen([program, "30"])
    try:
        assert sleeper.pid in children(os.getpid())
        assert sleeper.pid not in children(1) or os.getpid() == 1
    finally:
        sleeper.kill()
        sleeper.wait()
