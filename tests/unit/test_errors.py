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
