"""F3: the port at which ranks meet is taken, by another program or by an earlier attempt."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from helpers.process import run
from helpers.tnr import ROOT

from trainer.engine.rendezvous import check_endpoint, check_master_port, holder, is_free, is_here
from trainer.errors import TrainingError

LIMIT_S = 30
"""Of the whole command; importing torch takes most of it on a busy machine."""


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_f3_ranks_started_one_by_one_say_that_master_port_is_taken(taken: int, tmp_path) -> None:
    command = [sys.executable, "-m", "trainer.cli.main", "train", "post_train"]
    command += ["--data.articles", "none", "--run.dir", str(tmp_path / "run")]
    command += ["--run.global_batch", "64"]
    start = time.monotonic()
    done = run(
        command, timeout=LIMIT_S, cwd=ROOT, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(taken), PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 1 and time.monotonic() - start < LIMIT_S
    said = [line for line in done.stderr.splitlines() if line.startswith("tnr: error:")]
    assert len(said) == 1 and "Traceback" not in done.stderr
    assert f"MASTER_PORT {taken} of 127.0.0.1 is taken by process {os.getpid()}" in said[0]
    assert "end it, or start the ranks with another MASTER_PORT" in said[0]
    assert not (tmp_path / "run").exists()


def test_f3_torchrun_is_not_started_over_a_port_that_is_taken(taken: int) -> None:
    command = [sys.executable, "-m", "launchers.ranks", "--nnodes=2", "--rdzv-backend=c10d"]
    command += [f"--rdzv-endpoint=localhost:{taken}", "-m", "trainer.cli.main", "--help"]
    start = time.monotonic()
    done = run(command, timeout=LIMIT_S, cwd=ROOT, SLURM_NODEID="0", PYTHONPATH=str(ROOT))
    assert done.returncode == 1 and time.monotonic() - start < LIMIT_S
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"tnr: error: the rendezvous port {taken} of localhost is taken")


def test_f3_only_who_is_to_listen_asks(taken: int) -> None:
    held = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(taken)}
    with pytest.raises(TrainingError, match="another MASTER_PORT"):
        check_master_port(held | {"RANK": "0"})
    check_master_port(held | {"RANK": "1"})
    check_master_port(held | {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    endpoint = ["--rdzv_endpoint", f"localhost:{taken}"]
    with pytest.raises(TrainingError, match="rendezvous port"):
        check_endpoint(["--nnodes", "1", *endpoint], {})
    check_endpoint(["--nnodes=2", *endpoint], {"SLURM_NODEID": "1"})
    check_endpoint(["--nnodes=2", *endpoint], {})
    check_endpoint(["--standalone", "--nnodes=1", "-m", "x", *endpoint], {})
    check_endpoint(["--nnodes=1", f"--rdzv-endpoint=192.0.2.1:{taken}"], {})  # another machine's


def test_f3_another_node_of_the_same_attempt_may_be_quicker_on_the_same_machine() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NODEID": "0"}
    program = (
        "import socket, time; s = socket.create_server(('', 0));"
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | job, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        options = ["--nnodes=2", f"--rdzv-endpoint=localhost:{port}"]
        assert holder(port) == other.pid
        check_endpoint(options, job)
        for change in ({"SLURM_RESTART_COUNT": "2"}, {"SLURM_JOB_ID": "8"}):
            with pytest.raises(TrainingError, match=f"taken by process {other.pid}, perhaps left"):
                check_endpoint(options, job | change)
    finally:
        other.kill()
        other.communicate()
    assert holder(port) is None


def test_f3_a_port_that_is_free_is_seen_as_free(taken: int) -> None:
    assert not is_free(taken)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert is_free(port)
    check_master_port({"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
    assert is_here("localhost") and is_here(socket.gethostname())
    assert not is_here("192.0.2.1") and not is_here("no-such-host.invalid")
