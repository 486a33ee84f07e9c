"""Make texts uniform, so that equal words are equal bytes in any source.

Three rules, in this order, apply to titles, abstracts, bodies, categories and subcategories. Ids,
times and URLs are left unchanged, because they are keys and logs name articles by them:

``controls``
    Characters without shape and meaning are removed: control characters (category Cc) other
    than white space, the byte order mark (FEFF), soft hyphen (00AD), zero-width space (200B), word
    joiner and invisible operators (2060 to 2064), direction marks (200E, 200F, 061C, 202A to 202E,
    2066 to 2069) and annotation anchors (FFF9 to FFFB). They split a word into pieces that no
    vocabulary has. The joiner and the non-joiner stay (200D, 200C): Persian and the scripts of
    India need them for spelling, and emoji are composed with them. The other format characters (Cf)
    stay too: they are visible or part of an emoji.
``nfc``
    Unicode's canonical composition: "e" with a combining acute becomes "é". This changes no
    character that a reader sees; compatibility forms (NFKC: "½" to "1⁄2") would, and are left to
    tokenizers.
``space``
    Every kind of space, including the tab and the no-break space, becomes a plain space; runs of
    spaces become one, and spaces at the ends of lines are removed. Line ends (CR LF, CR, vertical
    tab, form feed, 0085, 2028, 2029 and the separators 001C to 001E) become a line feed. Abstracts
    and bodies keep their lines, which mark the ends of paragraphs and headings, with at most one
    blank line between two; in other fields a line end becomes a space.

The rules are idempotent. A field that becomes empty is omitted.
"""

import re
import unicodedata
from collections.abc import Mapping

RULES = ("controls", "nfc", "space")
VERSION = 1
"""Version in the manifest; increase it when the result of a rule changes."""

_MANY_LINES = frozenset(["abstract", "body"])
_ONE_LINE = frozenset(["title", "category", "subcategory"])

_REMOVED = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u2069\ufeff\ufff9-\ufffb"
)
_LINE_ENDS = "\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_SPACES = "\t\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"

_removed = re.compile(f"[{_REMOVED}]+")
# One search of the text: nearly all texts have no such character.
_odd = re.compile(f"[{_REMOVED}{_LINE_ENDS}{_SPACES}]")
_line_end = re.compile(f"\r\n|[{_LINE_ENDS}]")
_spaces = re.compile(f"[ {_SPACES}]+")
_blank_lines = re.compile("\n{3,}")


def normalise(text: str, many_lines: bool) -> tuple[str, int]:
    """Apply the rules to a text; return it and the effective rules as bits."""
    changed = 0
    odd = _odd.search(text) is not None
    if odd:
        kept = _removed.sub("", text)
        changed |= (kept != text) << 0
        text = kept
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        changed |= 1 << 1
        # Composing turns some spaces into others.
        odd = True
    if odd or _has_loose_space(text, many_lines):
        spaced = _space(text, many_lines)
        changed |= (spaced != text) << 2
        text = spaced
    return text, changed


def normalise_fields(found: Mapping[str, str]) -> tuple[dict[str, str], int]:
    """Apply the rules to an article's fields; return them and the effective rules as bits."""
    kept: dict[str, str] = {}
    changed = 0
    for name, text in found.items():
        if name in _MANY_LINES or name in _ONE_LINE:
            text, bits = normalise(text, name in _MANY_LINES)
            changed |= bits
        if text:
            kept[name] = text
    return kept, changed


def _has_loose_space(text: str, many_lines: bool) -> bool:
    if "  " in text or text[:1] in (" ", "\n") or text[-1:] in (" ", "\n"):
        return True
    if not many_lines:
        return "\n" in text
    return " \n" in text or "\n " in text or "\n\n\n" in text


def _space(text: str, many_lines: bool) -> str:
    text = _line_end.sub("\n", text)
    if not many_lines:
        text = text.replace("\n", " ")
    text = _spaces.sub(" ", text)
    if many_lines:
        text = _blank_lines.sub("\n\n", text.replace(" \n", "\n").replace("\n ", "\n"))
    return text.strip(" \n")
