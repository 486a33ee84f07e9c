"""What the run folder says about a run."""

import json
import subprocess

import pytest

from trainer.engine import run_folder
from trainer.engine.run_folder import RunFolder, git_revision, versions
from trainer.errors import TrainingError


def test_every_start_adds_a_line(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open()
    folder.describe({"run": {"seed": 1}}, {"zero_optimization": {"stage": 1}}, {"from_step": 0})
    folder.describe({"run": {"seed": 1}}, None, {"from_step": 5})
    folder.close()
    starts = (tmp_path / "run" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["from_step"] for line in starts] == [0, 5]
    assert json.loads(starts[0])["command"]
    # The second start had no DeepSpeed: the file of the first would be wrong about it.
    assert not (tmp_path / "run" / "deepspeed.json").exists()


def test_state_is_read_back_and_a_torn_one_counts_as_none(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.state() == {}
    folder.write_state("stopped", 3, 9, "why")
    assert folder.state() == {"state": "stopped", "step": 3, "steps": 9, "reason": "why"}
    (tmp_path / "state.json").write_text('{"st')
    assert folder.state() == {}


def test_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open()


def test_the_folder_of_other_runs_is_not_trained_in(tmp_path):
    for name in ("teacher", "student"):
        run = RunFolder(tmp_path / "runs" / name)
        run.open()
        run.describe({}, None, {})
        run.write_state("stopped", 3, 9)
        run.close()
    with pytest.raises(TrainingError, match=r"runs holds other runs \(student, teacher\); .*NAME"):
        RunFolder(tmp_path / "runs").open()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["student", "teacher"]
    (tmp_path / "runs" / "config.json").write_text("{}")  # of a run that is there already
    folder = RunFolder(tmp_path / "runs")
    folder.open()
    folder.close()


def test_lock_is_given_back(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.open()
    with pytest.raises(TrainingError, match="another process"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_lines_are_printed_and_kept(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.say("step 1")
    folder.close()
    assert capsys.readouterr().out == "step 1\n"
    assert (tmp_path / "log" / "train.log").read_text().endswith(" step 1\n")


def test_versions_name_what_decides_about_numbers():
    assert {"python", "torch", "deepspeed", "accelerate", "transformers"} <= versions().keys()


def test_git_revision_in_and_outside_a_checkout(tmp_path, monkeypatch):
    inside = tmp_path / "trainer" / "engine"
    inside.mkdir(parents=True)
    (inside / "run_folder.py").write_text("x = 1\n")
    monkeypatch.setattr(run_folder, "__file__", str(inside / "run_folder.py"))
    assert git_revision() is None

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    revision = git_revision()
    assert revision is not None
    assert len(revision) == 40
    (inside / "run_folder.py").write_text("x = 2\n")
    assert git_revision() == revision + "+"


def test_keys_in_locations_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tnr", "train", "--data.articles", "s3://ID:KEY/a@b/c?t=KEY"])
    folder = RunFolder(tmp_path)
    folder.describe({}, None, {})
    folder.write_state("stopped", 3, 9, "https://user:KEY@host/news: HTTP 503")
    assert not [path for path in tmp_path.iterdir() if "KEY" in path.read_text()]


def test_a_state_of_another_type_counts_as_none(tmp_path):
    for text in ("[]", '{"state": "running", "step": "3", "steps": 9}', '{"state": "x"}'):
        (tmp_path / "state.json").write_text(text)
        assert RunFolder(tmp_path).state() == {}
