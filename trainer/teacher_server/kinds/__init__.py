"""The registry of teacher signals: every kind by name, and which kinds a stage stands for.

A new kind is a class in a module of its own (:class:`trainer.teacher_server.kinds.base.Signal`) and
its line here. Nothing else knows kinds by name. Classes are imported when they are first asked for,
so this module is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainer.teacher_server.kinds.base import Signal


class Kind(NamedTuple):
    """A line of the registry."""

    stage: str
    """What ``--stage`` calls the kinds that are filled together; empty where no stage fills it."""
    about: str
    """What its columns hold, for ``--help``."""
    where: str
    """Its class, as ``module:class``."""


LOGITS = "teacher-logits"
_HERE = "trainer.teacher_server.kinds"
KINDS = {
    "teacher-text": Kind(
        "1", "title and body vectors of post-trained teachers", f"{_HERE}.text:TextVectors"
    ),
    "teacher-news": Kind("2", "news vectors", f"{_HERE}.clicks:NewsVectors"),
    "teacher-clicks": Kind(
        "2", "user vectors and candidate scores of finetuned ones", f"{_HERE}.clicks:ClickScores"
    ),
    "teacher-news-exact": Kind("", "news vectors in float32", f"{_HERE}.clicks:ExactNews"),
    LOGITS: Kind("", "logits of drawn negatives", f"{_HERE}.logits:DrawnLogits"),
}
"""Kinds by name; those of one stage in the order in which they are filled."""


def find(name: str) -> "type[Signal] | None":
    """Return the class of a kind, None for a name that is not in the registry."""
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
