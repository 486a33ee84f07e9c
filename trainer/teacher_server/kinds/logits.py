"""Stored stage I logits: every body's scores with one epoch's negatives, own title first.

Logits are computed from stored vectors, so neither a model nor torch is loaded. A column depends on
everything that determines the drawn negatives: its identity holds the seed, the epoch, the number
of negatives and their source.

Shapes: N rows of a shard, K of a chunk, B samples, C = 1 + negatives titles a sample, E news width.
"""

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards.columns import ColumnReader, describe, list_columns
from shards.negatives import Negatives
from shards.reader import ShardSet
from trainer.engine.signals import StopRequest
from trainer.errors import UsageError
from trainer.export.folder import Export
from trainer.teacher_server.cells import Target, mb
from trainer.teacher_server.fill import Filler, Report, Todo
from trainer.teacher_server.follow import Follower
from trainer.teacher_server.kinds import LOGITS
from trainer.teacher_server.kinds.base import Count, Signal, Tensors
from trainer.teacher_server.kinds.text import StoredTextSignals, TextVectors
from trainer.teacher_server.request import Source
from trainer.teacher_server.signals import Stored, TextRows, TextsSaid, tensors
from trainer.teacher_server.storage import gather_vectors, store_plain, value_bytes
from trainer.teacher_server.watch import FillProgress

SCORES = "body.scores"
"""Name of the tensor of logits, [rows, C]. For a set at a URL, tensors whose names begin with
``body`` are downloaded window by window, in the order of training."""
_CHUNK = 2048
"""Samples whose vectors are in memory at once: at C = 10 and E = 256, 20 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Logits:
    """The logits of M teachers for the negatives of some epochs."""

    articles: ShardSet
    teachers: Sequence[Export]
    negatives: Negatives
    epochs: tuple[int, ...]
    dtype: str
    """Storage type of the vectors that the logits are computed from; int8 vectors give logits in
    float16."""
    compute: str
    settings: str
    """The recipe and the settings that determine the logits, as words of a command."""

    def column(self, teacher: Export, epoch: int) -> "DrawnLogits":
        """Return the column of a teacher and an epoch."""
        return DrawnLogits(teacher, self, epoch)

    def vectors(self, text: TextVectors) -> ColumnReader:
        """Return the stored vectors of a teacher, opened once for all epochs."""
        if text.folder not in self._opened:
            self._opened[text.folder] = text.open()
        return self._opened[text.folder]

    @cached_property
    def _opened(self) -> dict[Path, ColumnReader]:
        return {}

    @property
    def command(self) -> str:
        """The command that fills the columns of these epochs."""
        return f"tnr teachers logits --epochs {','.join(map(str, self.epochs))} {self.settings}"


class DrawnLogits(Signal):
    """Logits [C] of every body with the negatives that one epoch draws."""

    name = LOGITS

    def __init__(self, teacher: Export, logits: Logits, epoch: int) -> None:
        """See :class:`trainer.teacher_server.kinds.base.Signal`."""
        self.logits, self.epoch = logits, epoch
        source = Source(logits.articles, None, logits.dtype, logits.compute)
        self.text = TextVectors(teacher, source)
        super().__init__(teacher, source)

    def identity(self) -> dict[str, Any]:
        """Return the vectors' identity, and everything that determines the negatives."""
        negatives, order = self.logits.negatives, self.logits.negatives.order
        drawn = {
            "seed": order.seed,
            "epoch": self.epoch,
            "num_negatives": negatives.count,
            "negatives_from": negatives.source,
        }
        if negatives.source == "window":
            drawn["window_shards"] = order.window_shards
        if len(order.skipped):
            drawn["order_without_damaged"] = order.fingerprint
        return self.text.identity() | drawn

    @property
    def which(self) -> str:
        """Epoch of the column, in words."""
        return f" for epoch {self.epoch}"

    @property
    def command(self) -> str:
        """The command that fills the columns of all requested epochs."""
        return self.logits.command

    @classmethod
    def repair(cls, shard_set: ShardSet, made_from: Mapping[str, Any]) -> str:
        """See :meth:`shards.column_kinds.ColumnKind.repair`."""
        return "tnr teachers logits RECIPE"

    @classmethod
    def made_of(cls, signal: Signal) -> list[tuple[Target, str]]:
        """Return the columns that were made from stage I vectors, by seed and epoch.

        Each column comes with a description of its negatives.
        """
        if not isinstance(signal, TextVectors):
            return []
        wanted = {"damaged_rows": None} | describe(*signal.target).made_from
        found = [
            info.made_from
            for info in list_columns(signal.shard_set, cls.name)
            if all(info.made_from.get(key) == value for key, value in wanted.items())
        ]
        words = "epoch {epoch} of seed {seed}, {num_negatives} negatives from the {negatives_from}"
        return [
            (Target(signal.shard_set, cls.name, made_from), words.format(**made_from))
            for made_from in sorted(found, key=lambda one: (one["seed"], one["epoch"]))
        ]

    @cached_property
    def work(self) -> list[int]:
        """Number of logits in each cell, at least 1."""
        num_titles = 1 + self.logits.negatives.count
        return [max(info.samples * num_titles, 1) for info in self.shard_set.manifest.shards]

    def row_bytes(self) -> np.ndarray:
        """Return the bytes of the logits of each cell."""
        return np.array(self.work) * value_bytes(self.dtype)

    def encode(self, model: object, rows: np.ndarray, count: Count = None) -> Tensors:
        """Compute dot products of bodies with own titles and negatives, in float32.

        Returns:
            float32[N, C], own title first; zeros for damaged articles, which no batch names.
        """
        negatives, vectors = self.logits.negatives, self.logits.vectors(self.text)
        scores_NC = np.zeros((len(rows), 1 + negatives.count), np.float32)
        places = np.flatnonzero(~np.isin(rows, negatives.order.skipped))
        for start in range(0, len(places), _CHUNK):
            places_K = places[start : start + _CHUNK]
            own_K = rows[places_K]
            drawn = negatives.of(own_K, np.full(len(own_K), self.epoch))
            titles_KC = np.concatenate([own_K[:, None], drawn], axis=1)
            bodies_KE = gather_vectors(vectors, "body", own_K).astype(np.float32)
            titles = gather_vectors(vectors, "title", titles_KC.ravel()).astype(np.float32)
            titles_KCE = titles.reshape(*titles_KC.shape, -1)
            scores_NC[places_K] = np.einsum("ke,kce->kc", bodies_KE, titles_KCE)
        return {SCORES: scores_NC}

    def cell(self, filler: Filler, shard: int, count: Count) -> Tensors:
        """Compute the tensors of a cell, without a teacher in memory."""
        scores_NC = self.encode(None, self.rows(shard))[SCORES]
        return {SCORES: store_plain(scores_NC, self.dtype)}


def fill_logits(logits: Logits, part: tuple[int, int], report: Report, stop: StopRequest) -> int:
    """Fill the cells of a part, epoch after epoch and teacher after teacher.

    Args:
        logits: Teachers, negatives and epochs.
        part: (I, N): the I-th of N parts of the cells, counted from 0.
        report: Receives a line before the work starts.
        stop: Asked between cells whether to continue.

    Returns:
        The number of computed cells, without skipped ones.

    Raises:
        ColumnError: The vectors of a teacher are incomplete (names the command that fills them), or
            a logit is not finite in the storage type (names the rows).
        DataError: The disk is too small for the missing cells.
        StopForRequeue: The process was asked to stop; committed cells stay.
    """
    signals = [logits.column(one, epoch) for epoch in logits.epochs for one in logits.teachers]
    for signal in signals:  # before anything is written
        logits.vectors(signal.text)
    todo = Todo(signals, part, stop, "free disk space, or name fewer epochs")
    report(f"{len(signals)} columns of logits: {len(todo.cells)} cells to fill, {mb(todo.size)}")
    shown = FillProgress(todo.work, len(todo.cells), todo.size, unit="logits")
    with shown as progress, todo.stopping():
        for number, signal in enumerate(signals):
            teacher = number % len(logits.teachers) + 1
            progress.teacher = f"epoch {signal.epoch}, teacher {teacher} of {len(logits.teachers)}"
            Filler([signal], todo, progress).fill(todo.of([signal]))
    return progress.cells_done


def parse_epochs(text: str) -> tuple[int, ...]:
    """Parse epochs such as ``0,2``, counted from 0.

    Raises:
        UsageError: The text is not a list of epochs.
    """
    epochs = text.split(",")
    if not all(epoch.isdecimal() for epoch in epochs):
        raise UsageError(f"--epochs {text!r}: expected numbers from 0 on, such as 0,1,2")
    return tuple(sorted(set(map(int, epochs))))


class StoredLogits(Stored[TextsSaid]):
    """Stage I signals with stored logits, and with vectors only on request.

    Args:
        logits: Logits of every epoch that the run reads, from epoch 0 on.
        with_vectors: Read vectors too, for the embedding loss.
        follower: Waits for cells that are still being filled, and for the columns of later epochs
            when a batch needs them; None refuses incomplete columns.

    Raises:
        ColumnError: A column does not exist, differs in a field, or is incomplete; the message
            names the field and the command that fills all epochs that the run reads.
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
        """Return the columns of all teachers; safe to call from several threads."""
        with self._opening:
            if epoch not in self._columns:
                logits, follower = self._logits, self._follower
                self._columns[epoch] = [
                    logits.column(teacher, epoch).open(follower) for teacher in logits.teachers
                ]
            return self._columns[epoch]
