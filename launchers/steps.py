"""Describe a step as data: command, needs, resources, and proof that it is done."""

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
    """Resources of a step for the scheduler; local runs read ``processes`` only."""

    nodes: int = 1
    """Machines."""
    processes: int = 1
    """Ranks on each machine; torchrun starts the ranks if there are several."""
    cpus: int = 4
    """CPU cores on each machine."""
    gpus: int = 0
    """GPUs on each machine."""
    memory_gib: int | None = None
    """Memory on each machine; None leaves the choice to the cluster."""
    minutes: int = 60
    """Time limit."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

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
        """Whether the step has more than one rank."""
        return self.nodes * self.processes > 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the method.

    A step with ``array`` is several tasks that may run side by side: task i is ``command`` followed
    by ``array[i]``. The tasks run one after another here, and as one array job on Slurm.
    """

    name: str
    """Unique name of letters, digits, ``-``, ``_`` and ``.``, used for files and jobs."""
    command: tuple[str, ...]
    """A ``tnr ...`` command line."""
    needs: tuple[str, ...] = ()
    """Steps that must be done first."""
    array: tuple[tuple[str, ...], ...] = ()
    """Further words of the command, one tuple per task; empty means one task without any."""
    proof: tuple[str, ...] = ()
    """Paths that exist once the step is done; may hold ``*``."""
    output: str | None = None
    """File or folder of this step alone, which may be moved away to run the step again."""
    resources: Resources = Resources()
    """Resources that the step asks for."""
    notes: tuple[str, ...] = ()
    """Notes on surprising effects of the step's settings."""

    def __post_init__(self) -> None:
        """Refuse text that would become another line or word of a script or log.

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
        """Verb, and recipe or action, if any: steps of one kind take similar times."""
        words = 3 if self.command[1] in _VERBS_WITH_ACTION else 2
        return " ".join(self.command[1:words])

    @property
    def goes_on(self) -> bool:
        """Whether the step, started again, continues from its last checkpoint."""
        return self.command[1] == "train" or self.kind in _GOING_ON

    def tasks(self) -> list[tuple[str, ...]]:
        """Return the command lines of all tasks, at least one."""
        return [self.command + words for words in self.array] or [self.command]


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Sort steps so that each follows its needs; otherwise keep the given order.

    Raises:
        UsageError: A name occurs twice, a needed step is unknown, or steps need each other.
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
    """Choose the steps to run: all, one alone, or one with its needs.

    Raises:
        UsageError: No step has that name; the message lists the existing names.
    """
    by_name = {step.name: step for step in steps}
    for name in (only, until):
        if name is not None and refuse_control(name, "the name of a step") not in by_name:
            raise UsageError(f"no step is called {name}; expected one of {', '.join(by_name)}")
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
    """Hash each step's command and, through its needs, all commands that it depends on.

    Resources are not part of the hash: another time limit does not make a result stale.

    Args:
        steps: Steps in order (:func:`in_order`).
    """
    found: dict[str, str] = {}
    for step in steps:
        content = [step.command, step.array, sorted(found[need] for need in step.needs)]
        found[step.name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return found
