"""Messages of the project's errors: one line, whatever the values in them hold."""

import pytest

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
