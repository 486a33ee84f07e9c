"""Registry of teacher signals: every kind by name, and the kinds of each stage.

A new kind is a class in its own module (:class:`trainer.teacher_server.kinds.base.Signal`) and a
line here. No other module knows kinds by name. Classes are imported when they are first used, so
this module is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainer.teacher_server.kinds.base import Signal


class Kind(NamedTuple):
    """A line of the registry."""

    stage: str
    """Value of ``--stage`` for kinds that are filled together; empty if no stage fills them."""
    about: str
    """Content of its columns, for ``--help``."""
    where: str
    """Class of the kind, as ``module:class``."""


LOGITS = "teacher-logits"
_HERE = "trainer.teacher_server.kinds"
KINDS = {
    "teacher-text": Kind(
        "1", "title and body vectors of post-trained teachers", f"{_HERE}.text:TextVectors"
    ),
    "teacher-news": Kind("2", "news vectors", f"{_HERE}.clicks:NewsVectors"),
    "teacher-clicks": Kind(
        "2",
        ("user vectors and candidate scores of finetuned teachers"),
        f"{_HERE}.clicks:ClickScores",
    ),
    "teacher-news-exact": Kind("", "news vectors in float32", f"{_HERE}.clicks:ExactNews"),
    LOGITS: Kind("", "logits of drawn negatives", f"{_HERE}.logits:DrawnLogits"),
}
"""Kinds by name; those of one stage in the order in which they are filled."""


def find(name: str) -> "type[Signal] | None":
    """Return the class of a kind; None for an unknown name."""
    if name not in KINDS:
        return None
    module, _, found = KINDS[name].where.partition(":")
    kind: type[Signal] = getattr(import_module(module), found)
    return kind


def stages() -> dict[str, list[str]]:
    """Return the names of the kinds of each stage."""
    found: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        if kind.stage:
            found.setdefault(kind.stage, []).append(name)
    return found


def kinds_of(stage: str) -> "list[type[Signal]]":
    """Return the classes of a stage, in the order in which they are filled."""
    return [kind for name in stages()[stage] if (kind := find(name)) is not None]
