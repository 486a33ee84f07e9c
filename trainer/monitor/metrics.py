"""``metrics.jsonl``: one JSON object per record, with all digits, truncated on resume."""

import io
import json
import os
from pathlib import Path
from typing import IO, Any

from shards.files import atomic_file, open_regular
from trainer.monitor.run_files import METRICS, as_record, parse_line


class MetricsFile:
    """Writer that appends records to a run's ``metrics.jsonl``.

    Args:
        folder: The run folder.
        resumed_step: Records after this step, and a line that a kill left incomplete, are cut off:
            the run writes them again.

    Attributes:
        step_s: Seconds per step by the last record kept; None without one.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path = folder / METRICS
        kept = cut_back(self.path, resumed_step)
        before = as_record(kept[-1]) if kept else None
        self.step_s = None if before is None else before.get("speed/step_s")
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; on return it may not yet be on the disk."""
        # json writes floats with repr, the shortest text that reads back as the same number.
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make the records durable, which must happen before a later checkpoint is written."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, up to the first incomplete or invalid line.

    Raises:
        DataError: The file is not regular, or unreadable.
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
    """Keep only the records up to a step, and return them; replaces the file."""
    if not path.exists():
        return []
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    with atomic_file(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    return kept
