"""Several processes: their end after an interrupt, an error, and the parent's death."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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


def started(tmp_path: Path, hangs: bool) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(BUSY.format(hangs=hangs))
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
    process = started(tmp_path, hangs=True)
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


def test_an_error_ends_processes_whose_tasks_are_done(tmp_path: Path):
    process = started(tmp_path, hangs=False)
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
