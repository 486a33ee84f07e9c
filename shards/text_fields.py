"""Which texts of an article can be tokenized, and what each of them is in a sample.

An article's category is a text too, the words of category and subcategory, and not an embedding by
number: so it is read by the encoder that is there anyway, a category that training never saw still
says something, and an exported model has no table of categories to keep in step with the data.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shards.errors import UsageError

TEXT_FIELDS = ("title", "abstract", "body", "category")
"""Every text that an article may have, in the order in which columns list them."""
DEFAULT_FIELDS = ("title", "body")
"""What is tokenized unless more is asked for."""
DEFAULT_TOKENS = {"title": 32, "abstract": 128, "body": 512, "category": 16}
"""Longest text of each field that is stored unless told otherwise, special tokens included."""


def field_text(sample: Mapping[str, Any], field: str) -> str:
    """The text of one field of an article, empty where it has none.

    ``category`` is the words of the category and then of the subcategory, with spaces for
    underscores: MIND's ``sports`` and ``football_nfl`` read ``sports football nfl``. A subcategory
    that only repeats the category is left out.
    """
    if field != "category":
        return sample.get(field) or ""
    names = dict.fromkeys(sample.get(name) or "" for name in ("category", "subcategory"))
    return " ".join(" ".join(names).replace("_", " ").split())


def parse_fields(text: str, option: str) -> tuple[str, ...]:
    """The fields of a command-line option, ``title,abstract``, in the order given.

    Raises:
        UsageError: a field is unknown or named twice, or there is none.
    """
    fields = tuple(part.strip() for part in text.split(",") if part.strip())
    check_fields(fields, option)
    return fields


def check_fields(fields: Sequence[str], option: str) -> None:
    """Refuse fields that are none, unknown or repeated; ``option`` is what named them.

    Raises:
        UsageError: the first thing that is wrong.
    """
    if not fields:
        raise UsageError(f"{option} names no field; there are {listed(TEXT_FIELDS)}")
    for place, field in enumerate(fields):
        if field not in TEXT_FIELDS:
            raise UsageError(f"{option}: there is no field {field!r}, but {listed(TEXT_FIELDS)}")
        if field in fields[:place]:
            raise UsageError(f"{option} names {field} twice")


def tokenize_command(location: str, tokenizer: object, limits: Mapping[str, int]) -> str:
    """What makes a token column.

    Args:
        location: folder or URL of the article set.
        tokenizer: its folder or name.
        limits: fields that are stored, each with its longest text; without any, the defaults.
    """
    fields = in_order(limits)
    words = ["tnr", "shards", "tokenize", location, "--tokenizer", str(tokenizer)]
    if fields and fields != DEFAULT_FIELDS:
        words += ["--fields", ",".join(fields)]
    for field in fields:
        words += [f"--{field}-tokens", str(limits[field])]
    return shlex.join(words)


def in_order(fields: Iterable[str]) -> tuple[str, ...]:
    """Fields in the order in which columns list them, so that the same ones are the same column."""
    wanted = set(fields)
    return tuple(field for field in TEXT_FIELDS if field in wanted)


def listed(fields: Sequence[str]) -> str:
    """``title, abstract and body``."""
    *first, last = fields
    return f"{', '.join(first)} and {last}" if first else last
