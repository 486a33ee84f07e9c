"""Verification that stored columns match the live teacher, on a sample of rows."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from shards.column_check import verify_columns
from shards.columns import ColumnReader
from trainer.errors import ColumnError, DamageError
from trainer.teacher_server.cells import Target
from trainer.teacher_server.outputs import TeacherModel
from trainer.teacher_server.request import FillRequest, made_of, signals_of
from trainer.teacher_server.teachers import open_teachers

TOLERANCE = {"float16": 2e-3, "float32": 1e-4, "int8": 1e-2}
"""Largest error of a value recomputed in fp32, relative to the largest value, by storage type.

Batches of another shape round differently, so even float32 is not compared bit by bit."""
TOLERANCE_BF16 = 3e-2


def verify_lines(teachers: Sequence[str], request: FillRequest, rows: int) -> Iterator[str]:
    """Check checksums, recompute evenly spaced rows, and yield one line per column.

    Columns that were made from these columns are only checked by checksum.

    Raises:
        DamageError: Stored bytes are damaged.
        ColumnError: A recomputed value differs more than the storage type explains.
    """
    for teacher in open_teachers(teachers):
        signals = signals_of(teacher, request)
        readers = [_intact(signal.target) for signal in signals]
        model = TeacherModel(teacher, request)
        for signal, reader in zip(signals, readers, strict=True):
            most = reader.num_rows
            sample = np.unique(np.linspace(0, most - 1, min(rows, most)).astype(np.int64))
            with torch.inference_mode():
                found = signal.compare(model, reader, sample)
            worst = max(found, key=lambda errors: errors.share)
            bf16 = request.compute == "bf16"
            allowed = TOLERANCE_BF16 if bf16 else TOLERANCE[signal.dtype]
            if not worst.share <= allowed:
                raise ColumnError(
                    f"{reader.folder}: a recomputed value of {worst.what} differs by "
                    f"{worst.share:.2e} of the largest, expected at most {allowed:.0e}; delete "
                    f"{worst.mend} and fill it again"
                )
            told = ", ".join(map(str, found))
            yield f"{teacher.folder} {reader.name}: bytes intact, largest error of {told}"
        for signal in signals:
            for target, which in made_of(signal):
                yield f"{teacher.folder} {_intact(target).name}, {which}: bytes intact"


def _intact(target: Target) -> ColumnReader:
    """Open a column after a check of its bytes."""
    reader = ColumnReader.open(*target)
    damaged = verify_columns(reader)
    if damaged:
        raise DamageError("; ".join(damaged))
    return reader
