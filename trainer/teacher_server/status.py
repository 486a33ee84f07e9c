"""Looking at teacher columns: how full they are, and whether they still say what the teacher
says."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from shards.cells import read_record
from shards.clicks import ClickColumn
from shards.columns import ColumnReader, describe, verify_columns
from trainer.errors import ColumnError, DamageError
from trainer.export.folder import Export, load_export
from trainer.teacher_server.fill import FillRequest, targets
from trainer.teacher_server.identity import CLICKS, NEWS
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.storage import gather_vectors

TOLERANCE = {("float16", "fp32"): 2e-3, ("float32", "fp32"): 1e-4, ("int8", "fp32"): 1e-2}
"""Largest error of a recomputed value relative to the largest value, by stored type and
computation.

Batches of another shape round differently, so even float32 is not compared to the bit."""
TOLERANCE_BF16 = 3e-2


def status_lines(teachers: Sequence[str], request: FillRequest) -> tuple[list[str], bool]:
    """A table of columns by teacher, and whether all of them are complete."""
    lines = [f"{'teacher':<44} {'column':<16} {'cells':>11} {'MiB':>9}  state"]
    complete = True
    for teacher in map(load_export, teachers):
        for target in targets(teacher, request):
            info = describe(*target)
            shards = target.shard_set.manifest.shards
            total = len(shards)
            records = [read_record(info.folder, info.fingerprint, shard) for shard in shards]
            there = total - records.count(None)
            size = sum(f.stat().st_size for f in info.folder.glob("*")) / 2**20
            state = "complete" if there == total else ("empty" if there == 0 else "partial")
            complete &= there == total
            lines.append(
                f"{str(teacher.folder)[-44:]:<44} {target.name:<16} {there:>5}/{total:<5} "
                f"{size:>9.1f}  {state}"
            )
    return lines, complete


def verify_lines(teachers: Sequence[str], request: FillRequest, rows: int) -> Iterator[str]:
    """Check checksums, recompute evenly spaced rows, and yield a line a column.

    Raises:
        DamageError: Stored bytes are damaged.
        ColumnError: A recomputed value is further off than the stored precision explains.
    """
    for teacher in map(load_export, teachers):
        for target in targets(teacher, request):
            reader = ColumnReader.open(*target)
            damaged = verify_columns(reader)
            if damaged:
                raise DamageError("; ".join(damaged))
            error = _recompute(teacher, reader, request, rows)
            allowed = (
                TOLERANCE_BF16
                if request.compute == "bf16"
                else TOLERANCE[(request.dtype, request.compute)]
            )
            if not error <= allowed:
                raise ColumnError(
                    f"{reader.folder}: a recomputed value differs by {error:.2e} of the largest, "
                    f"expected at most {allowed:.0e}; delete the folder and fill it again"
                )
            yield f"{teacher.folder} {target.name}: bytes good, largest relative error {error:.1e}"


@torch.inference_mode()
def _recompute(teacher: Export, reader: ColumnReader, request: FillRequest, count: int) -> float:
    model = TeacherModel(teacher, request.articles, device=request.device, compute=request.compute)
    num_rows = reader.shard_set.num_rows
    rows = np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64))
    if reader.name == NEWS:
        pairs = [(gather_vectors(reader, "news", rows), model.titles(rows))]
    elif reader.name == CLICKS:
        clicks = ClickColumn.open(reader.shard_set)
        news_NE = model.titles(np.arange(request.articles.num_rows))
        users, scores, _ = model.impressions(news_NE, clicks, rows)
        pairs = [
            (gather_vectors(reader, "user", rows), users),
            (reader.gather_ragged("scores", rows)[0], scores),
        ]
    else:
        pairs = [
            (gather_vectors(reader, "title", rows), model.titles(rows)),
            (gather_vectors(reader, "body", rows), model.bodies(rows)),
        ]
    return max(_relative_error(stored, live) for stored, live in pairs)


def _relative_error(stored: np.ndarray, live: np.ndarray) -> float:
    scale = float(np.abs(live).max()) or 1.0
    return float(np.abs(stored.astype(np.float32) - live).max()) / scale
