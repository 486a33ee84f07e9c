"""Stage I logits that are stored: what they are of, and serving a student's batches from them.

A column holds what one teacher says about every body with one epoch's draw of negatives, own title
first: ``(1 + N)`` values an article. It depends on everything that decides a draw, so that its
identity holds the seed, the epoch, the number of negatives and where they come from.

Shapes: B samples, C = 1 + N titles a sample.
"""

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.columns import ColumnReader
from shards.negatives import Negatives
from shards.reader import ShardSet
from trainer.errors import UsageError
from trainer.export.folder import Export
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.identity import LOGITS, logits_identity
from trainer.teacher_server.request import Target
from trainer.teacher_server.signals import (
    StoredTextSignals,
    TextRows,
    TextsSaid,
    open_column,
    tensors,
)

SCORES = "body.scores"
"""Tensor with the logits, [rows, C]. Of a set at a URL, what begins with ``body`` is brought over
window by window, in the order of training."""


@dataclass(frozen=True, kw_only=True)
class Logits:
    """The logits of M teachers for the draws of some epochs."""

    articles: ShardSet
    teachers: Sequence[Export]
    negatives: Negatives
    epochs: tuple[int, ...]
    dtype: str
    """Of the vectors that they are computed from; int8 ones give logits in float16."""
    compute: str
    settings: str
    """The recipe, and the settings that decide the logits, as words of a command."""

    def target(self, teacher: Export, epoch: int) -> Target:
        """The column of a teacher and an epoch."""
        made_from = logits_identity(
            teacher, self.articles, self.dtype, self.compute, self.negatives, epoch
        )
        return Target(self.articles, LOGITS, made_from)

    @property
    def command(self) -> str:
        """The command that fills the columns of these epochs."""
        return f"tnr teachers logits --epochs {','.join(map(str, self.epochs))} {self.settings}"


def parse_epochs(text: str) -> tuple[int, ...]:
    """Epochs such as ``0,2``, counted from 0.

    Raises:
        UsageError: The text says something else.
    """
    epochs = text.split(",")
    if not all(epoch.isdecimal() for epoch in epochs):
        raise UsageError(f"--epochs {text!r}: expected numbers from 0 on, such as 0,1,2")
    return tuple(sorted(set(map(int, epochs))))


class StoredLogits:
    """Stage I signals with stored logits, and with vectors only where they are asked for.

    Args:
        logits: Those of every epoch that the run reads, from epoch 0 on.
        with_vectors: Read vectors too, for the embedding loss.
        follower: Waits for cells that are still being filled, and for the columns of later epochs
            once a batch comes to them; None refuses columns that are not complete.

    Raises:
        ColumnError: A column is not there, differs in a field, which is named, or is not complete;
            the message has the command that fills all epochs that the run reads.
    """

    def __init__(
        self, logits: Logits, *, with_vectors: bool, follower: Follower | None = None
    ) -> None:
        self._logits = logits
        self._follower = follower
        self._vectors = None
        if with_vectors:
            folders = [teacher.folder for teacher in logits.teachers]
            self._vectors = StoredTextSignals(
                logits.articles, folders, logits.dtype, logits.compute, follower
            )
        self.dims = [] if self._vectors is None else self._vectors.dims
        self._opening = threading.Lock()
        self._columns: dict[int, list[ColumnReader]] = {}
        for epoch in logits.epochs[:1] if follower else logits.epochs:
            self._of_epoch(epoch)

    @property
    def columns(self) -> list[ColumnReader]:
        """See :class:`trainer.teacher_server.signals.TeacherSignals`."""
        vectors = [] if self._vectors is None else self._vectors.columns
        return [*vectors, *self._of_epoch(self._logits.epochs[0])]

    def read(self, rows: TextRows) -> TextsSaid:
        """See :meth:`trainer.teacher_server.signals.TeacherSignals.read`."""
        said = TextsSaid() if self._vectors is None else self._vectors.read(rows)
        draws_B = self._logits.negatives.draws(rows.epochs)
        parts = [
            (np.flatnonzero(draws_B == epoch), self._of_epoch(int(epoch)))
            for epoch in np.unique(draws_B)
        ]
        scores = []
        for m in range(len(self._logits.teachers)):
            dtype, shape = parts[0][1][m].tensors[SCORES]
            scores_BC = np.empty((len(rows.bodies), *shape), dtype)
            for places, columns in parts:
                scores_BC[places] = columns[m].gather(SCORES, rows.bodies[places])
            scores.append(scores_BC)
        return dataclasses.replace(said, scores=tensors(scores))

    def _of_epoch(self, epoch: int) -> list[ColumnReader]:
        """The columns of all teachers; batches are made by several threads."""
        with self._opening:
            if epoch not in self._columns:
                logits, follower = self._logits, self._follower
                self._columns[epoch] = [
                    open_column(logits.target(teacher, epoch), teacher, logits.command, follower)
                    for teacher in logits.teachers
                ]
            return self._columns[epoch]
