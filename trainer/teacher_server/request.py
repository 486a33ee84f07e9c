"""Request for a filling, as signals and their cells; the same for every process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.clicks import ClickColumn
from shards.histories import holders
from shards.reader import ShardSet
from trainer.export.folder import Export
from trainer.teacher_server.cells import Cell, Need, Target, missing_cells
from trainer.teacher_server.kinds import KINDS, find, kinds_of, stages

if TYPE_CHECKING:
    from trainer.teacher_server.kinds.base import Signal


@dataclass(frozen=True)
class Source:
    """Shard sets, storage type and precision of signals; the same for every teacher."""

    articles: ShardSet
    impressions: ShardSet | None = None
    """The impression set; None if no signal needs it."""
    dtype: str = "float16"
    """Storage type: one of :data:`trainer.teacher_server.storage.DTYPES`."""
    compute: str = "fp32"
    """Precision of the teacher's forward pass: ``fp32`` or ``bf16``."""

    def over(self, kind: str) -> ShardSet:
        """Return the shard set of a kind, ``articles`` or ``impressions``."""
        found: ShardSet | None = getattr(self, kind)
        assert found is not None
        return found

    @cached_property
    def clicks(self) -> ClickColumn:
        """Clicks of the impression set."""
        return ClickColumn.open(self.over("impressions"), self.articles.num_rows)

    def holders(self, history_length: int) -> np.ndarray:
        """Return the impression that holds each impression's user vector, int64[impressions]."""
        if history_length not in self._holders:
            self._holders[history_length] = holders(self.clicks, history_length)
        return self._holders[history_length]

    @cached_property
    def _holders(self) -> dict[int, np.ndarray]:
        return {}


@dataclass(frozen=True)
class FillRequest(Source):
    """What to fill; the same for every teacher."""

    batch_tokens: int = 16384
    """Tokens per forward pass, padding included."""
    device: str = "cpu"
    """Device of the teacher."""
    part: tuple[int, int] = (0, 1)
    """(I, N): the I-th of N parts of the cells, counted from 0."""
    stage: str = ""
    """A stage of :mod:`trainer.teacher_server.kinds`; empty means the first stage whose kinds need
    only the given sets."""

    @property
    def kinds(self) -> "list[type[Signal]]":
        """The kinds to fill, in order."""
        if self.stage:
            return kinds_of(self.stage)
        with_impressions = self.impressions is not None
        return kinds_of(next(one for one in stages() if reads_impressions(one) == with_impressions))


def reads_impressions(stage: str) -> bool:
    """Return whether a kind of a stage needs impressions."""
    return any(kind.over == "impressions" for kind in kinds_of(stage))


def signals_of(teacher: Export, request: FillRequest) -> "list[Signal]":
    """Return the signals of a teacher in the order in which they are filled."""
    return [kind(teacher, request) for kind in request.kinds]


def made_of(signal: "Signal") -> list[tuple[Target, str]]:
    """Return the columns on disk that were made from a signal's column.

    The columns may be of any kind; each comes with words that distinguish it.
    """
    found = []
    for kind in map(find, KINDS):
        found += [] if kind is None else kind.made_of(signal)
    return found


def list_cells(signals: "Sequence[Signal]") -> list[Cell]:
    """List every cell of every signal, filled or not."""
    return [
        Cell(number, shard, work)
        for number, signal in enumerate(signals)
        for shard, work in enumerate(signal.work)
    ]


def bytes_to_write(signals: "Sequence[Signal]") -> list[Need]:
    """Return the bytes of the missing cells, by their folder.

    The bytes are those of all parts, because the tasks of an array share one disk. They include
    working columns.
    """
    needs: dict[Path, int] = {}
    for signal in signals:
        missing = missing_cells(signal.target)
        sizes = {signal: int(signal.sizes[missing].sum())}
        if missing and signal.working is not None:
            sizes[signal.working] = int(signal.working.sizes.sum())
        for one, size in sizes.items():
            folder = one.shard_set.columns_dir
            needs[folder] = needs.get(folder, 0) + size
    return [Need(folder, size) for folder, size in needs.items()]
