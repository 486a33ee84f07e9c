"""What is to be filled, and its cells: the same list for every process, whatever is there already.

A cell is one shard of one column set of one teacher. Cells are listed teacher by teacher and column
by column, and cut into parts of about equal work; a part is a pure function of its number and of
how many there are, so any task of a job array can be killed and run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shards.columns import describe, list_columns
from shards.reader import ShardSet
from trainer.errors import UsageError
from trainer.export.folder import Export
from trainer.teacher_server import identity


@dataclass(frozen=True)
class FillRequest:
    """What to fill: the same for every teacher."""

    articles: ShardSet
    impressions: ShardSet | None
    """Impression set of stage II; None for stage I."""
    dtype: str = "float16"
    """``float16`` or ``float32``: how vectors and scores are stored."""
    compute: str = "fp32"
    """``fp32`` or ``bf16``: precision of the teacher's forward pass."""
    batch_tokens: int = 16384
    """Tokens of a forward pass, padding included."""
    device: str = "cpu"
    """Where the teacher runs."""
    part: tuple[int, int] = (0, 1)
    """(I, N): the I-th of N parts of the cells, counted from 0."""

    @property
    def stage(self) -> int:
        """1 or 2."""
        return 1 if self.impressions is None else 2


class Target(NamedTuple):
    """A column set that a teacher's outputs go to; nothing is made on disk by naming it."""

    shard_set: ShardSet
    name: str
    made_from: dict[str, Any]


def targets(teacher: Export, request: FillRequest) -> list[Target]:
    """The column sets of a teacher's outputs, in the order in which they are filled."""
    articles, impressions = request.articles, request.impressions
    dtype, compute = request.dtype, request.compute
    if impressions is None:
        made_from = identity.text_identity(teacher, articles, dtype, compute)
        return [Target(articles, identity.TEXT, made_from)]
    news = identity.news_identity(teacher, articles, dtype, compute)
    clicks = identity.clicks_identity(teacher, articles, impressions, dtype, compute)
    return [
        Target(articles, identity.NEWS, news),
        Target(impressions, identity.CLICKS, clicks),
    ]


def logits_from(vectors: Target) -> list[Target]:
    """The columns of logits beside the set that are made from a column of stage I vectors, by seed
    and epoch; none of stage II."""
    if vectors.name != identity.TEXT:
        return []
    made_from = describe(*vectors).made_from
    found = [
        Target(vectors.shard_set, info.name, info.made_from)
        for info in list_columns(vectors.shard_set, identity.LOGITS)
        if made_from.items() <= info.made_from.items()
        and made_from.get("damaged_rows") == info.made_from.get("damaged_rows")
    ]
    return sorted(found, key=lambda one: (one.made_from["seed"], one.made_from["epoch"]))


def drawn(logits: Target) -> str:
    """Which negatives the logits of a column are of, in words."""
    return (
        "epoch {epoch} of seed {seed}, {num_negatives} negatives from the {negatives_from}"
    ).format(**logits.made_from)


class Cell(NamedTuple):
    """One shard of one column set of one teacher."""

    teacher: int
    """Its place in the list of teachers."""
    name: str
    """Of the column."""
    shard: int
    work: int
    """Tokens to encode, or impressions to score: see :func:`list_cells`."""


def list_cells(teachers: Sequence[Export], request: FillRequest) -> list[Cell]:
    """Every cell of every teacher, filled or not.

    The work of a cell over articles is the number of tokens that its teacher reads; of one over
    impressions it is the number of impressions, as a user vector and its scores cost a small part
    of a token.
    """
    cells = []
    for number, teacher in enumerate(teachers):
        for target in targets(teacher, request):
            for shard, work in enumerate(_work(teacher, target)):
                cells.append(Cell(number, target.name, shard, work))
    return cells


def _work(teacher: Export, target: Target) -> list[int]:
    starts = target.shard_set.shard_starts
    if target.name == identity.CLICKS:
        return [max(int(rows), 1) for rows in np.diff(starts)]
    tokens = teacher.tokens(target.shard_set)
    texts = [teacher.news_texts(tokens)]
    if target.name == identity.TEXT:
        texts.append(teacher.body_texts(tokens))
    work = []
    for begin, end in pairwise(starts.tolist()):
        rows = np.arange(begin, end)
        work.append(max(int(sum(view.lengths(rows).sum() for view in texts)), 1))
    return work


def cells_of_part(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """The part of the list whose middles lie in the ``part``-th of ``parts`` equal spans of work.

    Every cell is in exactly one part. With more parts than cells, some are empty.
    """
    ends = np.cumsum([cell.work for cell in cells], dtype=np.int64).tolist()
    total = ends[-1] if ends else 1
    return [
        cell
        for cell, end in zip(cells, ends, strict=True)
        if (2 * end - cell.work) * parts // (2 * total) == part
    ]


def parse_part(text: str) -> tuple[int, int]:
    """``I/N`` as (I, N).

    Raises:
        UsageError: It is none, or I is not from 0 to N - 1.
    """
    first, slash, second = text.partition("/")
    if not slash or not first.isdecimal() or not second.isdecimal():
        raise UsageError(f"--part {text!r}: expected I/N, such as 0/8")
    part, parts = int(first), int(second)
    if part >= parts:
        raise UsageError(
            f"--part {text}: parts are counted from 0, so of {parts} the last is "
            f"{parts - 1}/{parts} (sbatch --array=0-{max(parts - 1, 0)})"
        )
    return part, parts
