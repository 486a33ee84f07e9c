"""The list of planted faults fits the code: a stale list would say nothing about the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

MUTATION = Path(__file__).parents[1] / "mutation"
sys.path.append(str(MUTATION))

from planting import ROOT, Fault, StaleList, load_faults  # noqa: E402


def test_every_old_text_is_there_once_and_its_tests_exist():
    faults = load_faults()
    assert len(faults) >= 200
    stale = []
    for fault in faults:
        try:
            fault.planted(ROOT)
        except StaleList as error:
            stale.append(str(error))
    assert not stale, "\n".join(stale)


@pytest.mark.parametrize(
    ("old", "new", "tests", "said"),
    [
        ("a = 9", "a = 2", "test_a.py", "0 times"),
        ("a = 1", "a = 2", "test_a.py", "2 times"),
        ("a = 1", "a = = 1", "test_a.py", "not Python"),
        ("a = 1", "a  =  1", "test_a.py", "changes nothing"),
        ("a = 1", "a = 2", "tests/gone.py", "there is no tests/gone.py"),
    ],
)
def test_a_stale_fault_is_named(tmp_path: Path, old: str, new: str, tests: str, said: str):
    (tmp_path / "module.py").write_text("a = 1\nb = a\n")
    fault = Fault("module.py", "what", old, new, (tests,))
    if said == "2 times":
        (tmp_path / "module.py").write_text("a = 1\na = 1\n")
    with pytest.raises(StaleList, match=said):
        fault.planted(tmp_path)


def test_a_stale_list_ends_the_script_before_anything_runs(tmp_path: Path):
    """A copy of the script whose list names a text that is not there."""
    copy = tmp_path / "tests" / "mutation"
    (copy / "faults").mkdir(parents=True)
    for name in ("planting.py", "run.py"):
        (copy / name).write_text((MUTATION / name).read_text())
    (tmp_path / "module.py").write_text("a = 1\n")
    table = '["module.py"]\ntests = "tests/x.py"\nfaults = [["what", "a = 9", "a = 2"]]\n'
    (copy / "faults" / "one.toml").write_text(table)
    done = subprocess.run(
        [sys.executable, copy / "run.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "module.py: what: the old text stands there 0 times" in done.stderr


def test_faults_are_killed_or_survive_by_what_the_tests_say(tmp_path: Path):
    """The whole script on a project of one module, one test and two faults; nothing stays."""
    copy = tmp_path / "tests" / "mutation"
    (copy / "faults").mkdir(parents=True)
    for name in ("planting.py", "run.py"):
        (copy / name).write_text((MUTATION / name).read_text())
    (tmp_path / "module.py").write_text("a = 1\nb = 2\n")
    test = "import module\n\n\ndef test_a():\n    assert module.a == 1\n"
    (tmp_path / "tests" / "test_module.py").write_text(test)
    (copy / "faults" / "one.toml").write_text(
        '["module.py"]\ntests = "tests/test_module.py"\n'
        'faults = [["found", "a = 1", "a = 2"], ["missed", "b = 2", "b = 3"]]\n'
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    words = [sys.executable, "tests/mutation/run.py", "--cold", "--results", "r.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "survived: module.py: missed" in done.stdout
    assert "1 of 2 faults were killed (50.0%)" in done.stdout
    again = subprocess.run(
        [*words, "--least", "50"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0
    assert "[1," not in again.stdout  # every verdict was there already
    assert (tmp_path / "module.py").read_text() == "a = 1\nb = 2\n"
