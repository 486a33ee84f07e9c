"""The registry of kinds of shard sets: every kind by name.

A new kind is a class in a file of its own (:class:`shards.set_kinds.base.SetKind`) and its line
here. Nothing generic knows kinds by name. Classes are imported when they are first asked for, so
this module is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.set_kinds.base import SetKind

KINDS = {
    "articles": "shards.set_kinds.articles:Articles",
    "impressions": "shards.set_kinds.impressions:Impressions",
}
"""Where the class of each kind is, as ``module:class``."""


def check_kind(name: str) -> None:
    """Check that a kind is in the registry.

    Raises:
        ValueError: It is not; the message names those that are.
    """
    if name not in KINDS:
        raise ValueError(f"kind {name!r} is unknown; known are {', '.join(KINDS)}")


def kind_named(name: str) -> "type[SetKind]":
    """Return the class of a kind.

    Raises:
        ValueError: There is no kind of that name.
    """
    check_kind(name)
    module, _, found = KINDS[name].partition(":")
    kind: type[SetKind] = getattr(import_module(module), found)
    return kind


def all_kinds() -> "list[type[SetKind]]":
    """Return the classes of all kinds."""
    return [kind_named(name) for name in KINDS]
