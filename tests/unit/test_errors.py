"""Messages of the project's errors: one line, whatever the values in them hold."""

import json
import sys

import pytest
from helpers.process import run
from helpers.tnr import ROOT

from launchers.local import StepFailed
from shards.errors import DamageError, one_line
from trainer.cli.main import main


@pytest.mark.parametrize("letter", ["\n", "\r", "\t", "\x00", "\x1b", "\x85", "\u2028", "\udcff"])
def test_a_control_character_is_written_as_in_quotes(letter: str) -> None:
    text = str(DamageError(f"a{letter}b"))
    assert text == one_line(f"a{letter}b") == f"a{ascii(letter)[1:-1]}b"
    assert len(text.splitlines()) == 1


def test_letters_of_all_scripts_stay() -> None:
    assert str(DamageError("zażółć 新聞 \u3000 🙂")) == "zażółć 新聞 \u3000 🙂"


def test_the_end_of_a_log_keeps_its_lines() -> None:
    assert str(StepFailed("step a failed:\n  | \x1b[31mred")) == "step a failed:\n  | \\x1b[31mred"


@pytest.mark.parametrize(
    "words", [["shards", "info", "no\nset"], ["no\nverb"], ["report", "a\x1b[31m.json"]]
)
def test_a_word_of_the_command_line_does_not_break_the_line(words: list[str], capsys) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert len(said.splitlines()) == 1
    assert said.strip().isprintable()


def test_no_text_commands_a_terminal() -> None:
    """Of what any command prints: news, logs and records hold what their writers wanted."""
    text = "a\x1b[2J\x9b1m\x00\tb\x85\n\udcffä"
    code = (
        "from trainer.cli.ending import name_standard_streams as name; name(); import json; "
        f"print({text!r}); print(json.dumps({text!r}, ensure_ascii=False))"
    )
    done = run([sys.executable, "-c", code], timeout=60, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    printed, as_json = done.stdout.removesuffix("\n").rsplit("\n", 1)
    assert printed == "a\\u001b[2J\\u009b1m\\u0000\tb\\u0085\n\\udcffä"
    assert json.loads(as_json) == text


@pytest.mark.parametrize(
    "verb", ["teachers adopt m --out o", "pipeline submit p.yaml", "runs", "shards stats s"]
)
def test_an_unknown_option_names_the_help_of_its_verb(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--foo=1"])
    words = " ".join(word for word in verb.split()[:2] if "." not in word)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"tnr: error: unrecognized arguments: --foo=1; see 'tnr {words} --help'\n"
    )


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["report", "e.json", "--out", ""], "--out"),
        (["report", "e.json", "--plot="], "--plot"),
        (["report", "e.json", ""], "EVAL.json"),
        (["runs", ""], "FOLDER"),
        (["export", "", "--out", "o"], "RUN"),
        (["export", "r", "--out", ""], "--out"),
        (["pipeline", "status", "p.yaml", "--out", ""], "--out"),
        (["teachers", "prune", "s", "--recipes", "r.json", ""], "--recipes"),
        (["shards", "build", "--articles", "", "--out", "o"], "--articles"),
        (["shards", "build", "--articles", "a", "--out", "o", "--bodies", ""], "--bodies"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(words: list[str], option: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.splitlines()) == 1
    assert f"tnr: error: argument {option}: expected a value, found an empty one; see" in said
