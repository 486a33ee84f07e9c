"""Name the texts of an article that can be tokenized; derive them from samples.

An article's category is a text too (the words of category and subcategory), not an embedding by
number: the existing encoder reads it, a category unseen in training still has meaning, and an
exported model needs no table of categories to keep in step with the data.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shards.errors import UsageError

TEXT_FIELDS = ("title", "abstract", "body", "category")
"""Every text that an article may have, in the order in which columns list them."""
DEFAULT_FIELDS = ("title", "body")
"""Fields that are tokenized by default."""
DEFAULT_TOKENS = {"title": 32, "abstract": 128, "body": 512, "category": 16}
"""Default length limit of each field's stored text, including special tokens."""


def field_text(sample: Mapping[str, Any], field: str) -> str:
    """Return the text of one field of an article; empty without that field.

    ``category`` is the words of the category and then of the subcategory, with underscores replaced
    by spaces: MIND's ``sports`` and ``football_nfl`` give ``sports football nfl``. A subcategory
    that repeats the category is omitted.
    """
    if field != "category":
        return sample.get(field) or ""
    names = dict.fromkeys(sample.get(name) or "" for name in ("category", "subcategory"))
    return " ".join(" ".join(names).replace("_", " ").split())


def parse_fields(text: str, option: str) -> tuple[str, ...]:
    """Parse the fields of a command-line option, ``title,abstract``, in the given order.

    Raises:
        UsageError: a field is unknown or named twice, or the option is empty.
    """
    fields = tuple(part.strip() for part in text.split(",") if part.strip())
    check_fields(fields, option)
    return fields


def check_fields(fields: Sequence[str], option: str) -> None:
    """Refuse empty, unknown or repeated fields; ``option`` is the option that names them.

    Raises:
        UsageError: the first error found.
    """
    if not fields:
        raise UsageError(f"{option} names no field; expected some of {listed(TEXT_FIELDS)}")
    for place, field in enumerate(fields):
        if field not in TEXT_FIELDS:
            raise UsageError(f"{option}: unknown field {field!r}; expected {listed(TEXT_FIELDS)}")
        if field in fields[:place]:
            raise UsageError(f"{option} names {field} twice")


def tokenize_command(location: str, tokenizer: object, limits: Mapping[str, int]) -> str:
    """Return the command that makes a token column.

    Args:
        location: folder or URL of the article set.
        tokenizer: folder or name of the tokenizer.
        limits: stored fields, each with its length limit; an empty mapping stands for the defaults.
    """
    fields = in_order(limits)
    words = ["tnr", "shards", "tokenize", location, "--tokenizer", str(tokenizer)]
    if fields and fields != DEFAULT_FIELDS:
        words += ["--fields", ",".join(fields)]
    for field in fields:
        words += [f"--{field}-tokens", str(limits[field])]
    return shlex.join(words)


def in_order(fields: Iterable[str]) -> tuple[str, ...]:
    """Sort fields in the order of columns, so that equal fields give equal columns."""
    wanted = set(fields)
    return tuple(field for field in TEXT_FIELDS if field in wanted)


def listed(fields: Sequence[str]) -> str:
    """Join names for a sentence: ``title, abstract and body``."""
    *first, last = fields
    return f"{', '.join(first)} and {last}" if first else last
