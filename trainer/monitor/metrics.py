"""``metrics.jsonl``: one JSON object a record, floats with all their digits, cut back on resume."""

import json
import os
from pathlib import Path
from typing import IO, Any

from shards.files import atomic_file

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records to a run's ``metrics.jsonl``.

    Args:
        folder: The run folder.
        resumed_step: Records after this step are cut off, and so is a line that a kill left half
            written: they will be, or were, made again.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.path = folder / FILE
        cut_back(self.path, resumed_step)
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
    """Records of a ``metrics.jsonl``, up to a half-written last line."""
    records: list[dict[str, Any]] = []
    if not path.exists():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def cut_back(path: Path, step: int) -> None:
    """Keep only the records up to a step. The file is replaced whole, or left as it is."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    with atomic_file(path, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
