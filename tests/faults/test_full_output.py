"""Standard output that is full or closed: one line, exit code 1, and the same command goes on."""

import io
import json
import stat
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers.process import run
from helpers.tnr import ROOT
from helpers.world import TINY_MODEL, TinyWorld, make_world

from trainer.cli.main import main

FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def full() -> str:
    if not FULL.exists() or not stat.S_ISCHR(FULL.stat().st_mode):
        pytest.skip("this machine has no /dev/full")
    return f">{FULL}"


def shell(words: list[object], redirect: str, **variables: str) -> CompletedProcess[str]:
    """Run one command with its standard streams redirected."""
    command = [sys.executable, "-m", "trainer.cli.main", *map(str, words)]
    text = f'set -o pipefail; "$@" {redirect}'
    variables |= {"PYTHONPATH": str(ROOT)}
    return run(["bash", "-c", text, "tnr", *command], timeout=120, cwd=ROOT, **variables)


def words_of(command: str, world: TinyWorld, place: Path) -> list[object]:
    """A command that prints."""
    articles = world.articles.path
    match command:
        case "build":
            source = place / "articles.jsonl"
            source.write_text('{"id": "N1", "title": "A title", "body": "A body"}\n')
            return ["shards", "build", "--articles", source, "--out", place / "set"]
        case "report":
            metrics = dict.fromkeys(("auc", "mrr", "ndcg5", "ndcg10"), 0.5)
            record = place / "evaluation.json"
            record.write_text(json.dumps({"name": "a", "metrics": metrics}))
            return ["report", record, "--resamples", 0]
        case "runs":
            return ["runs", place]
        case "help":
            return ["shards", "--help"]
        case "dry run" | "train":
            given = TINY_MODEL | {"data.articles": articles, "run.dir": place / "run"}
            given |= {"run.max_steps": 1, "run.copies.rule": "none"}
            words = [word for key, value in given.items() for word in (f"--{key}", value)]
            return ["train", "post_train", *words, *(["--dry-run"] if command == "dry run" else [])]
    return ["shards", command, articles, *([3] if command == "show" else [])]


COMMANDS = (
    "verify",
    "columns",
    "stats",
    "show",
    "build",
    "report",
    "runs",
    "help",
    "dry run",
    "train",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_full_or_closed_is_one_line(
    command: str, world: TinyWorld, full: str, tmp_path: Path
) -> None:
    words = words_of(command, world, tmp_path)
    for redirect in (full,) if command == "train" else (full, ">&-"):
        done = shell(words, redirect)
        err = [line for line in done.stderr.splitlines() if "warning" not in line.lower()]
        assert done.returncode == 1, done.stderr
        assert len(err) == 1 and err[0].startswith("tnr: error: "), done.stderr
        assert "standard output" in err[0]
    assert main([str(word) for word in words]) == 0 if command != "help" else True


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["runs", "help"])
def test_python_may_hold_back_what_is_printed_or_not(
    command: str, unbuffered: str, world: TinyWorld, full: str, tmp_path: Path
) -> None:
    words = words_of(command, world, tmp_path)
    for redirect, code in ((full, 1), (">&-", 1), ("| true", 141), (">&- 2>&-", 1)):
        done = shell(words, redirect, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == code, (redirect, done.stderr)
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
def test_an_error_that_cannot_be_said_is_still_the_exit_code(
    redirect: str, world: TinyWorld, full: str, tmp_path: Path
) -> None:
    assert shell(["runs", tmp_path / "none"], redirect).returncode == 2
    done = shell(["runs", tmp_path], redirect)
    assert done.returncode == 0 and "no runs" in done.stdout


def test_no_file_takes_the_place_of_a_closed_stream(world: TinyWorld, tmp_path: Path) -> None:
    """What a library prints would go into it."""
    words = words_of("build", world, tmp_path)
    assert shell(words, "<&- >&- 2>&-").returncode == 1
    assert shell(words, "").returncode == 0
    assert main(["shards", "verify", str(tmp_path / "set")]) == 0


def test_a_stream_that_was_put_in_place_by_the_caller_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the children of a pipeline do; nothing else refers to it."""
    said = tmp_path / "said"
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.FileIO(said, "w"), line_buffering=True))
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["runs", str(tmp_path)]) == 0
    assert said.read_text().count("no runs in") == 2
