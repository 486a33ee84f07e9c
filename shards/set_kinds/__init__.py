"""Register the kinds of shard sets: every kind by name.

To add a kind, write a class in a file of its own (:class:`shards.set_kinds.base.SetKind`) and add
its line here. Generic code names no kind. A class is imported at its first use, so this module is
light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.set_kinds.base import SetKind

KINDS = {
    "articles": "shards.set_kinds.articles:Articles",
    "impressions": "shards.set_kinds.impressions:Impressions",
}
"""Class of each kind, as ``module:class``."""


def check_kind(name: str) -> None:
    """Check that a kind is in the registry.

    Raises:
        ValueError: The kind is unknown; the message names the known kinds.
    """
    if name not in KINDS:
        raise ValueError(f"kind {name!r} is unknown; known are {', '.join(KINDS)}")


def kind_named(name: str) -> "type[SetKind]":
    """Return the class of a kind.

    Raises:
        ValueError: The kind is unknown.
    """
    check_kind(name)
    module, _, found = KINDS[name].partition(":")
    kind: type[SetKind] = getattr(import_module(module), found)
    return kind


def all_kinds() -> "list[type[SetKind]]":
    """Return the classes of all kinds."""
    return [kind_named(name) for name in KINDS]
