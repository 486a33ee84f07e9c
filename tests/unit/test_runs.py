"""``tnr runs`` over folders as runs leave them."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.tnr import ROOT

from trainer.cli.main import main
from trainer.monitor import run_files
from trainer.monitor.run_files import read_state
from trainer.monitor.runs import find_runs


def make_run(folder: Path, state: dict, records: list[dict], starts: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "post_train"}))
    (folder / "state.json").write_text(json.dumps({"step": 5, "steps": 20, **state}))
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "tr']))
    (folder / "starts.jsonl").write_text('{"host": "node7"}\n' * starts)
    (folder / ".lock").touch()
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    now = time.time()
    record = {"step": 7, "time": now - 120, "train/loss": 0.5, "speed/samples_per_s": 1234.5}
    make_run(tmp_path / "a", {"state": "finished", "step": 20}, [record | {"step": 20}])
    make_run(tmp_path / "b" / "c", {"state": "running"}, [record], starts=3)
    make_run(tmp_path / "d", {"state": "stopped", "reason": "SIGUSR2"}, [])
    failed = {"state": "stopped", "is_failed": True, "reason": "disk"}
    make_run(tmp_path / "e", failed, [record])
    make_run(tmp_path / "a" / "copies" / "inner", {"state": "finished"}, [])
    return tmp_path


def test_states_steps_and_numbers(runs: Path):
    found = {run.name: run for run in find_runs([runs])}
    assert list(found) == ["a", "b/c", "d", "e"]  # nothing inside a run
    assert [run.state for run in found.values()] == ["finished", "dead", "stopped", "failed"]
    middle = found["b/c"]
    assert (middle.step, middle.steps, middle.loss, middle.starts) == (7, 20, 0.5, 3)
    assert middle.host == "node7"
    assert middle.age_s == pytest.approx(120, abs=30)
    assert (found["d"].step, found["d"].loss, found["d"].age_s) == (5, None, None)
    assert found["e"].reason == "disk"


def test_starts_are_counted_in_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path / "a", {"state": "running"}, [])
    entry = json.dumps({"host": "node8", "command": "tnr train " + "x" * 2000}) + "\n"
    with (run / "starts.jsonl").open("a") as file:
        file.write(entry * 1500 + '{"host": "cut')
    assert [(one.starts, one.host) for one in find_runs([tmp_path])] == [(1501, "node8")]
    monkeypatch.setattr(run_files, "_BLOCK_BYTES", len(entry) + 7)  # lines end anywhere in a block
    assert run_files.count_starts(run) == 1501
    monkeypatch.setattr(run_files, "_MAX_STARTS_BYTES", 10 * run_files._BLOCK_BYTES)
    assert run_files.count_starts(run) == 11


def test_what_a_run_says_is_printed_on_one_line_without_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reason = "s3://ID:S3CRET@bucket: \x1b[2J gone\nfor good"
    run = make_run(tmp_path / "a\nb", {"state": "stopped", "reason": reason}, [])
    (run / "config.json").write_text(json.dumps({"task": "\x1b]0;https://u:S3CRET@h\n"}))
    bad = make_run(tmp_path / "bad", {"state": "s3://ID:S3CRET@bucket\n"}, [])
    assert read_state(run).reason == "s3://***@bucket: \\x1b[2J gone\\nfor good"
    assert main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3 and f"warning: {bad}" in said.err
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = capsys.readouterr().out
    assert [one["reason"] is not None for one in json.loads(listed)] == [True, True]
    for text in (said.out, said.err, listed):
        assert "S3CRET" not in text and "\x1b" not in text


def test_half_of_a_letter_in_what_a_run_says_is_shown(tmp_path: Path, capsys):
    """JSON may hold one, and no text can be written of it: it was a traceback."""
    run = make_run(tmp_path / "a", {"state": "stopped"}, [])
    (run / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "train/\\ud800": 1.0}\n')
    (run / "starts.jsonl").write_text('{"host": "\\ud800", "time": 1.0}\n')
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["metrics"], listed["host"]) == ({"train/\\ud800": 1.0}, "\\ud800")


def test_a_run_whose_folder_is_held_is_running(runs: Path):
    with FileLock(runs / "b" / "c" / ".lock"):
        assert {run.name: run.state for run in find_runs([runs])}["b/c"] == "running"


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["runs", str(runs), "--state", "dead", "failed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "b/c", "e"]
    assert "7/20" in lines[1] and "1,234.5" in lines[1] and "2 min" in lines[1]
    assert main(["runs", str(runs), "--json"]) == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)] == ["a", "b/c", "d", "e"]
    make_run(runs / "f", {"state": "failed"}, [{"step": 7, "time": 1.0, "train/loss": math.nan}])
    assert main(["runs", str(runs / "f"), "--json"]) == 0
    written = capsys.readouterr().out
    assert "NaN" not in written and json.loads(written)[0]["loss"] is None
    assert main(["runs", str(runs / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_reader_that_has_ended_is_no_success(runs: Path):
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "trainer.cli.main", "runs", str(runs)]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_run_is_as_far_as_its_newest_checkpoint(tmp_path: Path):
    """Killed after a checkpoint, before the record or the state that tells of it."""
    run = make_run(tmp_path / "a", {"state": "running", "step": 5}, [{"step": 6}])
    for name in ("step_00000004", "step_00000008", ".step_00000012.tmp", "latest", "step_x"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert [found.step for found in find_runs([tmp_path])] == [8]


def test_where_nothing_has_run_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    (tmp_path / "empty").mkdir()
    assert main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in runs\nno runs in empty\n"
    assert main(["runs", "mistyped"]) == 2
    (tmp_path / "runs").write_text("a file")
    assert main(["runs"]) == 2
