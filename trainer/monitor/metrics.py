"""``metrics.jsonl``: one JSON object a record, floats with all their digits, cut back on resume."""

import io
import json
import os
from pathlib import Path
from typing import IO, Any

from shards.files import atomic_file, open_regular
from trainer.monitor.run_files import METRICS, as_record, parse_line


class MetricsFile:
    """Appends records to a run's ``metrics.jsonl``.

    Args:
        folder: The run folder.
        resumed_step: Records after this step are cut off, and so is a line that a kill left half
            written: they will be, or were, made again.

    Attributes:
        step_s: Seconds a step by the last record that is kept, None where there is none.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path = folder / METRICS
        kept = cut_back(self.path, resumed_step)
        before = as_record(kept[-1]) if kept else None
        self.step_s = None if before is None else before.get("speed/step_s")
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; when this returns it is in the file, if not yet on the disk."""
        # json writes floats with repr, the shortest text that reads back as the same number.
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make the records durable, as they must be before a checkpoint that follows them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, up to a line that is half written or not a record.

    Raises:
        DataError: It is not a regular file, or cannot be read.
    """
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    with open_regular(path) as file:
        for line in io.BufferedReader(file):
            record = parse_line(line)
            if record is None or as_record(record) is None:
                break
            records.append(record)
    return records


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep only the records up to a step, and return them. The file is replaced whole."""
    if not path.exists():
        return []
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    with atomic_file(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    return kept
