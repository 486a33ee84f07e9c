"""A step of the method as data: what is run, what it needs and takes, and what proves it done."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainer.config.text import refuse_control, shown
from trainer.errors import ConfigError, UsageError

POST_TRAIN, POST_TRAIN_DISTILL = "post_train", "post_train_distill"
FINETUNE, FINETUNE_DISTILL, PLAIN = "finetune", "finetune_distill", "plain"
"""Kinds of training: stages of a pipeline, and the names of their recipes. ``plain`` is finetuning
without teachers."""
_VERBS_WITH_ACTION = ("train", "shards", "teachers")
_NAME = re.compile(r"\w[\w.-]*")
_GOING_ON = ("shards build", "shards tokenize", "teachers cache", "teachers logits")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a step takes where a scheduler asks; local runs look at ``processes`` alone."""

    nodes: int = 1
    """Machines."""
    processes: int = 1
    """Ranks on each machine; more than one (or more machines) starts them with torchrun."""
    cpus: int = 4
    """CPU cores on each machine."""
    gpus: int = 0
    """GPUs on each machine."""
    memory_gib: int | None = None
    """Memory on each machine; None leaves it to the cluster."""
    minutes: int = 60
    """Time limit."""

    def __post_init__(self) -> None:
        """Refuse what no machine has.

        Raises:
            ConfigError: A number is too small.
        """
        least = {"nodes": 1, "processes": 1, "cpus": 1, "gpus": 0, "memory_gib": 1, "minutes": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ConfigError(f"resources: {name} is {given}; expected at least {value}")

    @property
    def distributed(self) -> bool:
        """Whether the step is more than one rank."""
        return self.nodes * self.processes > 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the method.

    A step with ``array`` is several tasks that may run side by side: task i is ``command`` followed
    by ``array[i]``. Here they run one after another, on Slurm as one array job.
    """

    name: str
    """Unique, letters, digits, ``-``, ``_`` and ``.``: it names files and jobs."""
    command: tuple[str, ...]
    """A ``tnr ...`` command line."""
    needs: tuple[str, ...] = ()
    """Steps that must be done before."""
    array: tuple[tuple[str, ...], ...] = ()
    """Further words of the command, one tuple a task; empty: one task with none."""
    proof: tuple[str, ...] = ()
    """Paths that exist once the step is done; may hold ``*``."""
    output: str | None = None
    """File or folder that belongs to this step alone, and that may be moved away to do it again."""
    resources: Resources = Resources()
    """What it takes."""
    notes: tuple[str, ...] = ()
    """What its user may not expect of its settings."""

    def __post_init__(self) -> None:
        """Refuse what would be another line, or another word, of a script or a log.

        Raises:
            ConfigError: The name has other characters, or a word holds a control character.
        """
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"a step is called {shown(self.name)}; expected letters, digits, -, _ and ., a "
                "letter or digit first"
            )
        for word in (*self.command, *itertools.chain(*self.array), *self.proof, self.output or ""):
            refuse_control(word, f"step {self.name}: a word of its command")

    @property
    def kind(self) -> str:
        """Verb, and recipe or action where it has one: steps of one kind take alike long."""
        words = 3 if self.command[1] in _VERBS_WITH_ACTION else 2
        return " ".join(self.command[1:words])

    @property
    def goes_on(self) -> bool:
        """Whether the step, started again, goes on where it was stopped or killed."""
        return self.command[1] == "train" or self.kind in _GOING_ON

    def tasks(self) -> list[tuple[str, ...]]:
        """The command lines of all tasks, at least one."""
        return [self.command + words for words in self.array] or [self.command]


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Steps so that each comes after what it needs, else in the order given.

    Raises:
        UsageError: A name comes twice, a need is unknown, or steps need each other.
    """
    left = list(steps)
    names = Counter(step.name for step in left)
    for step in left:
        if names[step.name] > 1:
            raise UsageError(f"two steps are called {step.name}; names of steps are unique")
        for need in step.needs:
            if need not in names:
                raise UsageError(f"step {step.name} needs {need}, which is not a step")
    ordered: list[Step] = []
    placed: set[str] = set()
    while left:
        ready = next((step for step in left if placed.issuperset(step.needs)), None)
        if ready is None:
            raise UsageError(f"steps need each other: {', '.join(step.name for step in left)}")
        ordered.append(ready)
        placed.add(ready.name)
        left.remove(ready)
    return ordered


def choose(
    steps: Sequence[Step], *, only: str | None = None, until: str | None = None
) -> list[Step]:
    """The steps to run: all, one by itself, or one with everything that it needs.

    Raises:
        UsageError: No step has that name; the message lists those there are.
    """
    by_name = {step.name: step for step in steps}
    for name in (only, until):
        if name is not None and refuse_control(name, "the name of a step") not in by_name:
            raise UsageError(f"no step is called {name}; there is {', '.join(by_name)}")
    if only is not None:
        return [by_name[only]]
    if until is None:
        return list(steps)
    wanted: set[str] = set()
    waiting = [until]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(by_name[name].needs)
    return [step for step in steps if step.name in wanted]


def digests(steps: Sequence[Step]) -> dict[str, str]:
    """A hash of each step's command and, through its needs, of all commands it rests on.

    Resources are not part of it: another time limit does not make a result stale.

    Args:
        steps: In order (:func:`in_order`).
    """
    found: dict[str, str] = {}
    for step in steps:
        content = [step.command, step.array, sorted(found[need] for need in step.needs)]
        found[step.name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return found
