"""`tnr preflight`: each check as it goes well and as it fails, and ranks that meet or do not."""

import json
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from helpers.process import run
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, TinyWorld, make_world

from launchers import preflight
from launchers.preflight import Outcome
from trainer.cli.main import main
from trainer.engine.deepspeed_file import check_compiler
from trainer.engine.extensions import cpu_type

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("preflight"), num_articles=20)


def outcomes(capsys) -> dict[str, tuple[str, str]]:
    """Name of each check with its outcome and what was found."""
    checks = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: (check["outcome"], check["found"]) for check in checks}


def test_packages_are_compared_with_their_ranges() -> None:
    fine = preflight.check_packages(["numpy>=1", "no-such-thing>=1; extra == 'remote'"])
    assert (fine.outcome, fine.found) == (Outcome.OK, "1 within their ranges")
    wrong = preflight.check_packages(["numpy>=1000", "no-such-thing>=1"])
    assert wrong.outcome is Outcome.FAIL
    assert "expected >=1000" in wrong.found and "no-such-thing>=1 is missing" in wrong.found
    assert "pip install" in wrong.line() and wrong.line().startswith("fail  packages")


def test_compilers_are_a_failure_only_where_the_run_needs_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert preflight.check_compiler_tools(is_needed=False).outcome is Outcome.WARN
    needed = preflight.check_compiler_tools(is_needed=True)
    assert needed.outcome is Outcome.FAIL
    assert needed.found == "no a C++ compiler (g++) and no ninja (pip install ninja)"
    for name in ("ninja", "icpx"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CXX", "icpx")
    named = preflight.check_compiler_tools(is_needed=True)
    assert named.outcome is Outcome.OK and f"{tmp_path}/icpx" in named.found
    check_compiler()  # the run itself goes by the same rule


def test_the_lock_of_a_killed_build_is_named(tmp_path: Path) -> None:
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    fine = preflight.check_extensions(environment)
    assert fine.outcome is Outcome.OK and cpu_type() in fine.found
    lock = tmp_path / cpu_type() / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    found = preflight.check_extensions(environment)
    assert found.outcome is Outcome.WARN and str(lock) in found.found and "delete it" in found.hint


def test_a_run_folder_is_tried_and_nothing_stays(tmp_path: Path, monkeypatch) -> None:
    run_folder = tmp_path / "runs" / "first"
    checks = preflight.check_run_folder(run_folder, needed=1000)
    assert [check.outcome for check in checks] == [Outcome.OK, Outcome.OK]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    assert preflight.check_run_folder(run_folder, needed=1000)[1].outcome is Outcome.FAIL
    assert preflight.check_run_folder(run_folder)[1].outcome is Outcome.WARN
    shm = preflight.check_shared_memory(tmp_path)
    assert shm.outcome is Outcome.WARN and "--shm-size" in shm.hint
    assert preflight.check_shared_memory(tmp_path / "none").outcome is Outcome.WARN


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("os.fsync", "written and synced: Input/output error (EIO)"),
        ("fcntl.flock", "locked: No locks available (ENOLCK)"),
    ],
)
def test_a_run_folder_that_refuses_is_named_with_the_cause(
    where: str, said: str, tmp_path: Path, monkeypatch
) -> None:
    import errno
    import os

    code = errno.EIO if "fsync" in where else errno.ENOLCK

    def refuse(*_) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(where, refuse)
    (check,) = preflight.check_run_folder(tmp_path)
    assert check.outcome is Outcome.FAIL and said in check.found and "run.dir" in check.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_run_folder(tmp_path: Path) -> None:
    assert preflight.check_run_folder(Path("/proc/1/here"))[0].outcome is Outcome.FAIL


def test_host_and_port() -> None:
    assert preflight.check_host("localhost").outcome is Outcome.OK
    lost = preflight.check_host("no-such-host.invalid")
    assert lost.outcome is Outcome.FAIL and "/etc/hosts" in lost.hint
    assert preflight.check_port({}).outcome is Outcome.OK
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        taken = preflight.check_port({"MASTER_PORT": port})
        ranked = {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        assert preflight.check_port(ranked).outcome is Outcome.FAIL
    assert taken.outcome is Outcome.FAIL and f"sport = :{port}" in taken.hint
    assert preflight.check_port({"MASTER_PORT": port}).found == f"{port} is free"


def test_slurm_is_asked_where_it_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "only needed to submit" in preflight.check_slurm().found
    script = tmp_path / "sinfo"
    bash = shutil.which("bash", path="/bin:/usr/bin")
    script.write_text(f"#!{bash}\necho 'gpu* up 2'\n")
    script.chmod(0o755)
    assert preflight.check_slurm().found == "gpu* up 2"
    script.write_text(f"#!{bash}\necho 'no controller' >&2; exit 1\n")
    down = preflight.check_slurm()
    assert down.outcome is Outcome.WARN and down.found == "sinfo failed: no controller"


def test_a_run_and_two_ranks(world: TinyWorld, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "DISK_GIB", 0.0)
    given = TINY_MODEL | {"data.articles": world.articles.path, "run.dir": tmp_path / "run"}
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    words += ["--run.copies.rule", "none"]
    options = ["--json", "--processes", "2"]
    assert main(["preflight", *options, "post_train", *words]) == 0
    found = outcomes(capsys)
    assert found["data"] == ("ok", "20 articles with tokens, 20 units per epoch")
    assert found["disk"][0] == "ok" and "GB needed" in found["disk"][1]
    assert found["all-reduce"][0] == "ok" and "2 ranks on" in found["all-reduce"][1]
    assert found["clocks"][0] == "ok" and "differ by 0.0" in found["clocks"][1]
    assert not (tmp_path / "run").exists()


def test_data_that_are_missing_are_a_failure(tmp_path: Path, capsys) -> None:
    words = ["--data.articles", str(tmp_path / "none"), "--run.dir", str(tmp_path / "run")]
    words += ["--preset", "cpu"]
    assert main(["preflight", "post_train", *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("fail")] == ["data"]
    assert any(str(tmp_path / "none") in line for line in lines if line.startswith("fail"))


def test_a_missing_rank_is_named_within_the_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = run(
        [sys.executable, "-m", "trainer.cli.main", "preflight", "--timeout", "1"],
        timeout=40, cwd=ROOT, RANK="0", WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert "rank 1, 2 of 3 did not answer" in line and "GLOO_SOCKET_IFNAME" in line


def test_rank_0_reports_for_the_others_and_for_clocks_that_differ(capsys, monkeypatch) -> None:
    from trainer.engine.probe import Meeting

    refused = {"name": "shm", "outcome": "fail", "found": "none", "hint": "mount it"}
    met = Meeting(ranks=2, hosts=["n1", "n2"], backend="gloo", skew_s=3.5, told=[[], [refused]])
    monkeypatch.setattr("trainer.engine.probe.meet_here", lambda *_: met)
    assert main(["preflight", "--processes", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("rank 1 on n2: none; mount it") for line in lines)
    (clocks,) = [line for line in lines if "clocks of the ranks" in line]
    assert clocks.startswith("warn") and "3.500 s" in clocks
