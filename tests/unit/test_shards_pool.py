"""Several processes: their end after an interrupt, an error, and the parent's death."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from shards.pool import Workers

ROOT = Path(__file__).parents[2]
SENDING = """
import os, signal, sys, threading
from shards.pool import Workers
from trainer import interrupt
from trainer.cli.ending import exit_code_of

def large(number):
    return bytes(300_000_000)

def command():
    interrupt.set_running(True)
    with Workers(2) as workers:
        for _ in workers.map(large, range(100)):
            print("sent", flush=True)

if __name__ == "__main__":
    interrupt.watch(signal.SIGINT)
    sys.exit(exit_code_of(command))
"""
BUSY = """
import os, signal, sys, time
from shards.pool import Workers
from trainer import interrupt
from trainer.cli.ending import exit_code_of

def work(number):
    print(os.getpid(), flush=True)
    time.sleep(600 if {hangs} else 0)
    return number

def command():
    interrupt.set_running(True)
    with Workers(2) as workers:
        for number in workers.map(work, range(100)):
            if number == 3:
                raise OSError(28, "No space left on device", "here")

if __name__ == "__main__":
    interrupt.watch(signal.SIGINT)
    interrupt.watch(signal.SIGTERM)
    code = exit_code_of(command)
    print("ended", flush=True)
    sys.exit(code)
"""


def started(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(program)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ([signal.SIGINT], "tnr: interrupted\n"),
        ([signal.SIGINT] * 2, "tnr: interrupted\n"),
        ([signal.SIGTERM], "tnr: interrupted by SIGTERM\n"),
    ],
)
def test_signals_end_processes_in_the_middle_of_a_task(tmp_path: Path, signals, said: str):
    process = started(tmp_path, BUSY.format(hangs=True))
    try:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        for number in signals:  # a terminal sends them to every process
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, error) == (128 + signals[0], said), out
    assert all(is_gone(pid) for pid in workers)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.2])
def test_an_interrupt_in_the_middle_of_a_result_is_answered(tmp_path: Path, after_s: float):
    """A result of hundreds of MB whose sender is gone must not be waited for."""
    process = started(tmp_path, SENDING)
    try:
        assert process.stdout.readline() == "sent\n"
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, error) == (130, "tnr: interrupted\n")


def double(number: int) -> int:
    return 2 * number


def fail(number: int) -> int:
    raise ValueError(f"no {number}")


def unsendable(number: int) -> object:
    return lambda: number


def die(number: int) -> int:
    os._exit(3)


def test_results_come_in_order_also_of_maps_that_take_turns():
    with Workers(2) as workers:
        first, second = workers.map(double, range(20)), workers.map(double, range(100, 120))
        both = [next(source) for _ in range(20) for source in (first, second)]
    assert both == [value for n in range(20) for value in (2 * n, 2 * n + 200)]


def test_a_map_that_is_left_does_not_mix_with_the_next():
    with Workers(2) as workers:
        assert next(workers.map(double, range(50))) == 0
        assert list(workers.map(double, range(5))) == [0, 2, 4, 6, 8]


def test_an_error_is_raised_where_its_result_is_due_and_tells_where_it_was():
    with Workers(2) as workers, pytest.raises(ValueError, match="no 0") as raised:
        list(workers.map(fail, range(5)))
    assert "in fail" in raised.value.__notes__[0]


def test_what_cannot_be_sent_is_said():
    with Workers(2) as workers, pytest.raises(RuntimeError, match="cannot be sent"):
        list(workers.map(unsendable, range(5)))


def test_a_signal_while_processes_are_ended_is_not_heeded(monkeypatch):
    """It would leave some of them running."""
    kill, heard = SpawnProcess.kill, []

    def interrupted(process):
        signal.raise_signal(signal.SIGINT)
        kill(process)

    monkeypatch.setattr(SpawnProcess, "kill", interrupted)
    former = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        with Workers(2) as workers:
            assert list(workers.map(double, range(4))) == [0, 2, 4, 6]
    finally:
        signal.signal(signal.SIGINT, former)
    assert not heard


def test_a_process_that_dies_is_told_by_its_exit_code():
    with Workers(2) as workers, pytest.raises(BrokenProcessPool, match="exit code 3 before"):
        list(workers.map(die, range(5)))


def test_an_error_ends_processes_whose_tasks_are_done(tmp_path: Path):
    process = started(tmp_path, BUSY.format(hangs=False))
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.startswith("tnr: error: cannot write here: No space") and error.count("\n") == 1
    assert all(is_gone(int(pid)) for pid in out.split()[:-1])


STOPPED = """
import os, signal, sys, time
from shards.stopping import TaskStopping

stopping = TaskStopping()
if sys.argv[1] == "idle":
    signal.raise_signal(signal.SIGTERM)
else:
    with stopping.task():
        signal.raise_signal(signal.SIGTERM)
        print("finished", flush=True)
print("still there", flush=True)
"""


@pytest.mark.parametrize(("what", "printed"), [("idle", ""), ("busy", "finished\n")])
def test_sigterm_ends_an_idle_worker_at_once_and_a_busy_one_after_its_task(what, printed):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, printed), done.stderr
