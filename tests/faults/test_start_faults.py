"""What killed starts leave outside the run folder, and a start that comes to nothing."""

import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launchers import preflight
from trainer.engine import extensions
from trainer.engine.extensions import Baton, remove_stale_segments, stale_segments

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from trainer.engine.extensions import Baton
baton = Baton(sys.argv[1])
baton.try_acquire()
print("holds", flush=True)
time.sleep(1000)
"""


def holding(lock: Path) -> subprocess.Popen[str]:
    """A process that compiles, and does not come to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def test_f5_the_lock_of_a_killed_start_is_taken_over(tmp_path: Path, capsys) -> None:
    lock = tmp_path / "lock"
    owner = holding(lock)
    owner.kill()
    owner.communicate()
    assert lock.exists()
    baton = Baton(str(lock))
    assert baton.try_acquire()
    assert f"removed {lock}, which a killed start left behind" in capsys.readouterr().err
    baton.release()
    assert not lock.exists()


def test_f5_a_start_says_whom_it_waits_for_and_goes_on_when_that_one_dies(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(extensions, "SAY_S", 0.1)
    owner = holding(tmp_path / "lock")
    baton, took = Baton(str(tmp_path / "lock")), threading.Event()
    waiting = threading.Thread(target=lambda: took.set() if baton.try_acquire() else None)
    waiting.start()
    said = ""
    while "waiting for" not in said:
        said += capsys.readouterr().err
        time.sleep(0.02)
    assert f"process {owner.pid} on {socket.gethostname()}" in said
    assert str(tmp_path) in said
    assert not took.is_set()
    owner.kill()
    owner.communicate()
    assert took.wait(30)
    waiting.join()


def test_f5_torch_compiles_under_our_baton() -> None:
    """torch makes its baton by this name, in the way that ours understands."""
    program = (
        "import inspect\n"
        "from trainer.engine.extensions import Baton, use_batons\n"
        "from torch.utils import cpp_extension\n"
        "assert 'FileBaton(os.path.join(build_directory, ' in inspect.getsource(cpp_extension)\n"
        "assert hasattr(cpp_extension, 'FileBaton')\n"
        "use_batons(print)\n"
        "assert cpp_extension.FileBaton is Baton\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_f5_a_file_system_without_locks_is_served_as_torch_does(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(extensions.FileLock, "acquire", refuse)
    first, second = Baton(str(tmp_path / "lock")), Baton(str(tmp_path / "lock"))
    assert first.try_acquire()
    assert not second.try_acquire()
    assert "delete it" in capsys.readouterr().err
    first.release()
    second.wait()
    assert second.try_acquire()


def test_f2_a_start_that_hangs_ends_with_its_stacks() -> None:
    program = (
        "import time\n"
        "from trainer.engine.watchdog import watched_start\n"
        "def meets_nobody():\n"
        "    time.sleep(1000)\n"
        "with watched_start(3, 0.1):\n"
        "    meets_nobody()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    assert re.search(r"tnr: hang: rank 3 made no progress for \d+\.\d s in start", done.stderr)
    assert "run.hang_timeout_s 0.1" in done.stderr
    assert "meets_nobody" in done.stderr


def test_f2_a_start_that_compiles_is_no_hang_until_it_takes_far_too_long() -> None:
    program = (
        "import time\n"
        "from trainer.engine import watchdog\n"
        "watchdog.COMPILE_S = 3.0\n"
        "with watchdog.watched_start(3, 0.1) as note:\n"
        "    note(True)\n"
        "    time.sleep(1)\n"
        "    note(False)\n"
        "    print('compiled', flush=True)\n"
        "    note(True)\n"
        "    time.sleep(1000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stdout == "compiled\n"
    assert "in start, compiling, (run.hang_timeout_s 0.1, here 3 s)" in done.stderr


def test_f2_a_start_is_watched(monkeypatch, tmp_path: Path) -> None:
    """The ranks' meeting lies within what is watched."""
    from helpers.world import make_world

    from trainer.engine import distributed

    seen: list[str] = []
    inner = distributed._start_accelerate

    def meet(*arguments):
        seen.extend(thread.name for thread in threading.enumerate())
        return inner(*arguments)

    monkeypatch.setattr(distributed, "_start_accelerate", meet)
    with distributed.start(make_world(tmp_path, num_articles=20).config("post_train")):
        assert "watchdog of the start" in seen
        names = [thread.name for thread in threading.enumerate()]
        assert "watchdog of the start" not in names


def test_f2_data_and_model_of_a_start_are_watched(monkeypatch, tmp_path: Path) -> None:
    """Opening them lies within what is watched, and filling frozen states is progress."""
    from helpers.world import TINY_MODEL, make_world

    from trainer.cli.main import main
    from trainer.engine import distributed, trainer, watchdog
    from trainer.tasks import build

    world = make_world(tmp_path, num_articles=20)
    seen: list[str] = []
    ticks: list[int] = []
    limits: list[float] = []
    inner, watched, opened = build.build, watchdog.watched_start, trainer.open_run

    def start_watched(rank, limit_s):
        limits.append(limit_s)
        return watched(rank, limit_s)

    def open_watched(*arguments, **options):
        seen.extend(thread.name for thread in threading.enumerate())
        return opened(*arguments, **options)

    def built(config, tick):
        seen.extend(thread.name for thread in threading.enumerate())
        task = inner(config, tick=lambda: ticks.append(tick() is None))
        seen.append("built")
        return task

    monkeypatch.setattr(build, "build", built)
    monkeypatch.setattr(trainer, "open_run", open_watched)
    for module in (watchdog, trainer, distributed):
        monkeypatch.setattr(module, "watched_start", start_watched)
    given = TINY_MODEL | {
        "data.articles": world.articles.path,
        "data.clicks": world.impressions.path,
        "model.trainable_layers": 1,
        "model.frozen_states": "float32",
        "run.dir": tmp_path / "run",
        "run.max_steps": 1,
        "run.hang_timeout_s": 123,
    }
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    assert main(["train", "finetune", *words]) == 0
    before, after = seen[: seen.index("built")], seen[seen.index("built") :]
    assert "watchdog of the start" in before and "watchdog of the start" in after
    assert ticks and limits == [123.0] * 3


def test_f2_a_start_that_goes_on_is_no_hang() -> None:
    program = (
        "import time\n"
        "from trainer.engine.watchdog import watched_start\n"
        "with watched_start(3, 0.5) as note:\n"
        "    for _ in range(12):\n"
        "        time.sleep(0.3)\n"
        "        note()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_f5_shared_memory_of_killed_runs_is_removed(tmp_path: Path, capsys, listening: int) -> None:
    import os

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uid = os.getuid()
    prefix = "deepspeed_allreduce_buffer"
    dead = tmp_path / f"{prefix}_{uid}_127.0.0.1_{port}_0"
    kept = [
        tmp_path / f"{prefix}_{uid}_127.0.0.1_{listening}_0",  # its ranks still run
        tmp_path / f"{prefix}_{uid + 1}_127.0.0.1_{port}_0",  # another user's
        tmp_path / f"{prefix}_{uid}_192.0.2.1_{port}_0",  # ranks that met on another machine
        tmp_path / f"{prefix}_of_somebody",
    ]
    for path in (dead, *kept):
        path.touch()
    assert stale_segments(tmp_path) == [dead]
    assert "1 segments of killed runs" in preflight.check_shared_memory(tmp_path).found
    remove_stale_segments(tmp_path)
    assert not dead.exists()
    assert all(path.exists() for path in kept)
    assert "removed 1 segments" in capsys.readouterr().err
