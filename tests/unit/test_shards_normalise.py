"""The rules of normalisation, one by one, and what holds of all of them."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards.normalise import RULES, normalise, normalise_fields


def applied(text: str, many_lines: bool = True) -> tuple[str, list[str]]:
    result, bits = normalise(text, many_lines)
    return result, [rule for place, rule in enumerate(RULES) if bits >> place & 1]


@pytest.mark.parametrize(
    ("given_text", "expected", "rules"),
    [
        ("Plain, text.\nTwo lines.\n\nThree.", None, []),
        ("", None, []),
        ("a\x00b\x07c\x7fd\x9fe", "abcde", ["controls"]),
        ("\ufeffHead", "Head", ["controls"]),
        ("news\u00adpaper zero\u200bwidth", "newspaper zerowidth", ["controls"]),
        ("\u202aleft\u202c \u2066x\u2069\u061c", "left x", ["controls"]),
        # A Persian word, a woman at a computer, two letters of Devanagari.
        ("\u0645\u06cc\u200c\u062e\u0648 👩\u200d💻 क्\u200dष", None, []),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", None, []),
        ("cafe\u0301", "café", ["nfc"]),
        ("e\u200b\u0301", "é", ["controls", "nfc"]),
        ("\u2126 \u212b", "Ω Å", ["nfc"]),
        ("½ ﬁ ² \uff21", None, []),
        ("a\u2000b", "a b", ["nfc", "space"]),
        ("a \t b\u00a0c\u3000d\u2009e", "a b c d e", ["space"]),
        ("a  b", "a b", ["space"]),
        (" a ", "a", ["space"]),
        ("a \n  b\r\nc\rd", "a\nb\nc\nd", ["space"]),
        ("a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg", "a\nb\nc\nd\ne\nf\ng", ["space"]),
        ("a\n\n\n\n b", "a\n\nb", ["space"]),
        ("a\n \n\t\nb", "a\n\nb", ["space"]),
        ("a\r\n\r\nb", "a\n\nb", ["space"]),
        ("\u200b \ufeff", "", ["controls", "space"]),
    ],
)
def test_bodies(given_text, expected, rules):
    assert applied(given_text) == (given_text if expected is None else expected, rules)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [("One\nline", "One line"), ("a\r\n\tb", "a b"), ("a\u2028b", "a b"), ("a b", "a b")],
)
def test_titles_are_one_line(given_text, expected):
    assert applied(given_text, many_lines=False)[0] == expected


def test_which_fields_are_changed():
    odd = "a\u00a0\u00a0b\nc\u200b"
    names = ("id", "url", "time", "title", "category", "subcategory", "abstract", "body")
    fields, bits = normalise_fields(dict.fromkeys(names, odd))
    assert fields == {
        **dict.fromkeys(("id", "url", "time"), odd),
        **dict.fromkeys(("title", "category", "subcategory"), "a b c"),
        **dict.fromkeys(("abstract", "body"), "a b\nc"),
    }
    assert bits == 0b101
    # Nothing is left of the title: the article has none.
    assert normalise_fields({"id": "1", "title": "\u200b", "body": "x"}) == (
        {"id": "1", "body": "x"},
        1,
    )


# Drawn from what the rules are about, so that their borders meet.
_MEETING = st.text(st.sampled_from("a\u0301e \t\n\r\x0b\x1c\x85\xa0\u2000\u2028\u200b\u200d\ufeff"))


@settings(max_examples=400, deadline=None)
@given(st.one_of(_MEETING, st.text()), st.booleans())
@example(" \n \n ", True)
@example("a\n \u0301", True)
def test_twice_is_once_and_nothing_odd_is_left(text, many_lines):
    once, changed = normalise(text, many_lines)
    assert normalise(once, many_lines) == (once, 0)
    assert bool(changed) == (once != text)
    assert unicodedata.is_normalized("NFC", once)
    assert all(
        char in "\n " or (unicodedata.category(char) != "Cc" and not char.isspace())
        for char in once
    )
    assert once == once.strip()
    assert "  " not in once
    assert ("\n" not in once) or (many_lines and "\n\n\n" not in once and " \n" not in once)
    # No letter is lost, made or moved.
    assert letters(once) == letters(text)


def letters(text: str) -> list[str]:
    return [char for char in unicodedata.normalize("NFD", text) if char.isalnum()]
