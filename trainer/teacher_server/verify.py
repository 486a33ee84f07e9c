"""Whether stored columns still say what the live teacher says, on a sample of rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shards.clicks import ClickColumn
from shards.column_check import verify_columns
from shards.columns import ColumnReader
from trainer.errors import ColumnError, DamageError
from trainer.export.folder import Export
from trainer.teacher_server.empty import EMPTY, read_empty
from trainer.teacher_server.identity import CLICKS, NEWS
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.request import FillRequest, Target, drawn, logits_from, targets
from trainer.teacher_server.signals import user_vectors
from trainer.teacher_server.storage import gather_vectors
from trainer.teacher_server.teachers import open_teachers

TOLERANCE = {("float16", "fp32"): 2e-3, ("float32", "fp32"): 1e-4, ("int8", "fp32"): 1e-2}
"""Largest error of a recomputed value relative to the largest value, by stored type and
computation.

Batches of another shape round differently, so even float32 is not compared to the bit."""
TOLERANCE_BF16 = 3e-2


class Errors(NamedTuple):
    """Largest errors of stored against recomputed values."""

    kind: str
    """``title``, ``body``, ``news``, ``empty title``, ``user`` or ``scores``."""
    absolute: float
    relative: float
    """Of a vector: length of the difference over the vector's length, the largest of the rows. Of
    scores: the largest difference over the largest score."""
    share: float
    """The largest absolute error over the largest value: what must stay below the bound."""

    def __str__(self) -> str:
        """As a part of a line."""
        of = "of the largest" if self.kind == "scores" else "of the norm"
        return f"{self.kind} {self.absolute:.1e} ({self.relative:.1e} {of})"


def verify_lines(teachers: Sequence[str], request: FillRequest, rows: int) -> Iterator[str]:
    """Check checksums, recompute evenly spaced rows, and yield a line a column. Of the logits that
    are there, which follow from the vectors, only checksums are checked.

    Raises:
        DamageError: Stored bytes are damaged.
        ColumnError: A recomputed value is further off than the stored precision explains.
    """
    for teacher in open_teachers(teachers):
        wanted = targets(teacher, request)
        yield from _verify_values(teacher, [_intact(one) for one in wanted], request, rows)
        for logits in logits_from(wanted[0]):
            reader = _intact(logits)
            yield f"{teacher.folder} {reader.name}, {drawn(logits)}: bytes good"


def _intact(target: Target) -> ColumnReader:
    """Open a column whose bytes are those that were written."""
    reader = ColumnReader.open(*target)
    damaged = verify_columns(reader)
    if damaged:
        raise DamageError("; ".join(damaged))
    return reader


def _verify_values(
    teacher: Export, readers: list[ColumnReader], request: FillRequest, rows: int
) -> Iterator[str]:
    """One teacher in memory for all of its columns."""
    model = TeacherModel(
        teacher,
        request.articles,
        device=request.device,
        compute=request.compute,
        batch_tokens=request.batch_tokens,
    )
    bf16 = request.compute == "bf16"
    allowed = TOLERANCE_BF16 if bf16 else TOLERANCE[(request.dtype, request.compute)]
    for reader in readers:
        found = _recompute(model, reader, request, rows)
        worst = max(found, key=lambda errors: errors.share)
        if not worst.share <= allowed:
            wrong = EMPTY if worst.kind == "empty title" else "the folder"
            raise ColumnError(
                f"{reader.folder}: a recomputed value of {worst.kind} differs by {worst.share:.2e} "
                f"of the largest, expected at most {allowed:.0e}; delete {wrong} and fill it "
                "again"
            )
        told = ", ".join(map(str, found))
        yield f"{teacher.folder} {reader.name}: bytes good, largest error of {told}"


@torch.inference_mode()
def _recompute(
    model: TeacherModel, reader: ColumnReader, request: FillRequest, count: int
) -> list[Errors]:
    num_rows = reader.shard_set.num_rows
    rows = np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64))
    if reader.name == NEWS:
        empty_E = read_empty(reader.shard_set, reader.folder)
        return [
            _vector_errors("news", gather_vectors(reader, "news", rows), model.titles(rows)),
            _vector_errors("empty title", empty_E[None], model.empty_title()[None]),
        ]
    if reader.name == CLICKS:
        clicks = ClickColumn.open(reader.shard_set, request.articles.num_rows)
        users, scores, _ = model.impressions_from(model.titles, clicks, rows)
        stored, _ = reader.gather_ragged("scores", rows)
        return [
            _vector_errors("user", user_vectors(reader, rows), users),
            _score_errors(stored, scores),
        ]
    return [
        _vector_errors("title", gather_vectors(reader, "title", rows), model.titles(rows)),
        _vector_errors("body", gather_vectors(reader, "body", rows), model.bodies(rows)),
    ]


def _vector_errors(kind: str, stored_NE: np.ndarray, live_NE: np.ndarray) -> Errors:
    off_NE = stored_NE.astype(np.float32) - live_NE
    norms_N = np.maximum(np.linalg.norm(live_NE, axis=1), np.finfo(np.float32).tiny)
    absolute = float(np.abs(off_NE).max())
    relative = float((np.linalg.norm(off_NE, axis=1) / norms_N).max())
    return Errors(kind, absolute, relative, absolute / (float(np.abs(live_NE).max()) or 1.0))


def _score_errors(stored_K: np.ndarray, live_K: np.ndarray) -> Errors:
    absolute = float(np.abs(stored_K.astype(np.float32) - live_K).max())
    share = absolute / (float(np.abs(live_K).max()) or 1.0)
    return Errors("scores", absolute, share, share)
