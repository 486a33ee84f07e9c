"""Signals to the process that starts the ranks, before they can catch one themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(script: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launchers.ranks", "--standalone", "--nproc-per-node=1"]
    return subprocess.Popen(
        [*command, str(script), *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def handles(process: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal (Linux)."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    caught = next(line for line in status if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def wait_until(happened) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_rank_that_dies_of_the_signal_while_it_starts_asks_for_a_new_start(
    tmp_path: Path, number: int
):
    script = tmp_path / "rank.py"
    script.write_text("import sys, time\nopen(sys.argv[1], 'w').close()\ntime.sleep(120)\n")
    launcher = launch(script, str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)
    launcher.send_signal(number)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, said


def test_a_signal_before_there_are_ranks_asks_for_a_new_start(tmp_path: Path):
    launcher = launch(tmp_path / "never.py")
    wait_until(lambda: handles(launcher.pid, signal.SIGUSR2))  # torch is being imported then
    launcher.send_signal(signal.SIGUSR2)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, said
    assert "SIGUSR2: stopped before the ranks started" in said


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGUSR2)", 1),  # nobody passed that one on
        ("os._exit(3)", 1),
        ("os._exit(75)", 75),  # stopped with a checkpoint
    ],
)
def test_how_a_rank_ends_by_itself_is_how_the_launcher_ends(tmp_path: Path, end: str, code: int):
    script = tmp_path / "rank.py"
    script.write_text(f"import os, signal\n{end}\n")
    launcher = launch(script)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == code, said
