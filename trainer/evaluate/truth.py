"""Labels of a click log straight from MIND's ``behaviors.tsv``, without a shard set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.mind import BEHAVIORS_NAME, find_member
from shards.sources import InputFile
from trainer.errors import DataError


def read_truth(path: str | Path) -> Iterator[tuple[str, list[int]]]:
    """Yield (impression id, labels) of every line, in order; an empty impression has no labels.

    Args:
        path: ``behaviors.tsv``, perhaps ``.gz``, or a folder or zip that holds it.

    Raises:
        DataError: A line has not five columns, is not UTF-8, or a candidate has no label; names it.
    """
    source = find_member(Path(path), BEHAVIORS_NAME) or InputFile(Path(path))
    for number, line in source.lines():
        where = f"{source.name}, line {number}"
        try:
            columns = (line or b"").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8: {error}") from error
        if len(columns) != 5:
            raise DataError(f"{where} has {len(columns)} columns separated by tabs; expected 5")
        labels = [item.rpartition("-")[2] for item in columns[4].split() if "-" in item]
        if len(labels) != len(columns[4].split()) or not set(labels) <= {"0", "1"}:
            raise DataError(
                f"{where}: a candidate has no label -0 or -1; a test log cannot be scored here"
            )
        yield columns[0].strip(), [int(label) for label in labels]
