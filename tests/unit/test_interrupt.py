"""Ctrl-C while a command starts is one line and exit code 130, in every process of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import interrupt
from trainer.cli import runs
from trainer.cli.main import main
from trainer.engine import signals
from trainer.engine.signals import StopRequest

ROOT = Path(__file__).parents[2]
INTERRUPTS_ITSELF = (
    "import os, signal\n"
    "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    "except KeyboardInterrupt:\n    raise ImportError('taken for a missing package') from None\n"
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


TRAIN = ("train", "post_train", "--data.articles", "a", "--run.dir", "r", "--dry-run")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("argparse", ("-m", "trainer.cli.main", *TRAIN)),  # while the command itself is imported
        ("argparse", ("TNR", *TRAIN)),  # in the console's tnr
        ("yaml", ("-m", "trainer.cli.main", *TRAIN)),  # what the running command needs
        ("torch", ("-m", "trainer.cli.main", *TRAIN[:-1])),  # where a scheduler's signals count
        ("torch", ("-m", "launchers.ranks", "--standalone", "-m", "trainer.cli.main", *TRAIN)),
    ],
)
def test_an_interrupt_inside_an_import_is_one_line(tmp_path: Path, module: str, words):
    (tmp_path / f"{module}.py").write_text(INTERRUPTS_ITSELF)
    console = tmp_path / "tnr"
    console.write_text("import sys\nfrom trainer.cli.main import entry\nsys.exit(entry())\n")
    done = run(tmp_path, *(str(console) if word == "TNR" else word for word in words))
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


def test_sigterm_is_one_line_too(tmp_path: Path):
    (tmp_path / "yaml.py").write_text(INTERRUPTS_ITSELF.replace("SIGINT", "SIGTERM"))
    done = run(tmp_path, "-m", "trainer.cli.main", *TRAIN)
    assert (done.returncode, done.stderr) == (143, "tnr: interrupted by SIGTERM\n")


def test_a_running_command_is_interrupted_by_an_exception(monkeypatch, tmp_path: Path, capsys):
    def interrupted(arguments) -> int:
        interrupt._handle(signal.SIGINT, sys._getframe())
        raise AssertionError

    monkeypatch.setattr(runs, "run", interrupted)
    assert main(["runs", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "tnr: interrupted\n"
    ended: list[bool] = []
    monkeypatch.setattr(interrupt, "end", lambda: ended.append(True) or sys.exit())
    with pytest.raises(SystemExit):  # nothing runs any more
        interrupt._handle(signal.SIGINT, sys._getframe())
    assert ended


def test_an_interrupt_before_training_is_not_a_wish_to_start_again(monkeypatch, capfd):
    codes: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        StopRequest(is_training=False).handle(number, None)
    assert codes == [130, 75, 75]


def test_processes_that_are_started_never_see_an_interrupt(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, sys\n"
        "from multiprocessing import forkserver\n"
        "from shards.pool import interrupt_blocked\n"
        "def blocked(pid):\n"
        "    lines = open(f'/proc/{pid}/status').read().splitlines()\n"
        "    return int(next(li for li in lines if li.startswith('SigBlk')).split()[1], 16) & 2\n"
        "if __name__ == '__main__':\n"
        "    for kind in ('forkserver', 'spawn'):\n"
        "        child = multiprocessing.get_context(kind).Process(target=print)\n"
        "        with interrupt_blocked():\n"
        "            child.start()\n"
        "        kind == 'spawn' or print(bool(blocked(forkserver._forkserver._forkserver_pid)))\n"
        "        kind != 'spawn' or print(bool(blocked(child.pid)))\n"
        "        child.join()\n"
        "    print(bool(blocked(os.getpid())))\n"
    )
    done = run(tmp_path, str(program))
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
