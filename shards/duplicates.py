"""Decide which rows become articles: find repeated ids and contents by their hashes alone.

Memory: about 80 bytes per row while it is decided, one byte per row afterwards.

An article whose title and body equal those of an earlier one, under another id, is dropped. Its id
is written to ``duplicates.jsonl`` with the row of the kept article, and click logs that name the id
get that row. The file is part of the set: its size and sha256 are in the manifest's source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DamageError
from shards.files import parse_json, sha256_file
from shards.manifest import Manifest
from shards.publish import DUPLICATES_NAME
from shards.reader import ShardSet
from shards.spool import Spool, read_column

KEPT, REPEATED, DUPLICATE_ID, DUPLICATE_CONTENT = range(4)


@dataclass(frozen=True)
class _Duplicate:
    """Required keys of a line in ``duplicates.jsonl``."""

    id: str
    row: int


def first_of_each(hashes: np.ndarray) -> np.ndarray:
    """Return, for each row, the first row with the same hash.

    Args:
        hashes: uint64 ``[n, 2]``.

    Returns:
        int64 ``[n]``.
    """
    if len(hashes) == 0:
        return np.zeros(0, np.int64)
    # The sort is stable: rows with equal hashes stay in ascending order.
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    begins = np.ones(len(order), bool)
    begins[1:] = False
    for half in range(2):
        column = hashes[:, half][order]
        begins[1:] |= column[1:] != column[:-1]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)][np.cumsum(begins) - 1]
    return first


def decide(
    spools: Sequence[Spool], inputs: Sequence[int], keep_duplicates: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decide about every row of the spools of articles.

    The first row of an id counts. A later row is "repeated" if the first one is from an earlier
    input and has the same fields, else a "duplicate id". Among the first rows of their ids, a row
    with the title and body of an earlier one is "duplicate content".

    Args:
        spools: Spools in the order of the inputs.
        inputs: Number of each spool's input.
        keep_duplicates: Whether duplicate content is kept.

    Returns:
        uint8 ``[n]`` with ``KEPT``, ``REPEATED``, ``DUPLICATE_ID`` or ``DUPLICATE_CONTENT`` for
        each row; and int64, for each row of duplicate content in order, the row that is kept.
    """
    first = first_of_each(read_column(spools, "id"))
    own = first == np.arange(len(first))
    verdict = np.where(own, KEPT, DUPLICATE_ID).astype(np.uint8)
    number = np.repeat(np.asarray(inputs, np.uint32), [spool.num_rows for spool in spools])
    article = read_column(spools, "article")
    verdict[~own & (number[first] < number) & (article[first] == article)] = REPEATED
    del number, article, first
    if keep_duplicates:
        return verdict, np.zeros(0, np.int64)
    rows = np.flatnonzero(own)
    texts = read_column(spools, "text")
    kept = rows[first_of_each(texts if len(rows) == len(texts) else texts[rows])]
    again = kept != rows
    verdict[rows[again]] = DUPLICATE_CONTENT
    return verdict, kept[again]


def describe_duplicates(folder: Path) -> dict[str, Any]:
    """Describe ``duplicates.jsonl`` in ``folder`` for the manifest's source."""
    path = folder / DUPLICATES_NAME
    return {"name": DUPLICATES_NAME, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def duplicates_problem(folder: Path, manifest: Manifest) -> str | None:
    """Describe what is wrong with ``duplicates.jsonl`` in ``folder``, or return None."""
    facts = manifest.source.get("duplicates")
    path = folder / DUPLICATES_NAME
    if not isinstance(facts, dict) or (path.is_file() and sha256_file(path) == facts.get("sha256")):
        return None
    return "is missing or is not the file that was built; build the article set again"


def read_duplicates(articles: ShardSet) -> Iterator[tuple[str, int]]:
    """Yield (id, row) of every article that was dropped for one with the same content.

    Raises:
        DamageError: The file is missing, or its content has changed.
        DataError: The set is remote and the file cannot be fetched.
    """
    facts = articles.manifest.source.get("duplicates")
    if facts is None:
        return
    if not isinstance(facts, dict):
        raise DamageError(f"{articles.path}: the manifest's duplicates are damaged")
    if articles.mirror is not None:
        articles.mirror.bring_file(DUPLICATES_NAME, str(facts.get("sha256")))
    path = articles.path / DUPLICATES_NAME
    if (problem := duplicates_problem(articles.path, articles.manifest)) is not None:
        raise DamageError(f"{path} {problem}")
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = parse_json(line, _Duplicate, where=path)
            if not 0 <= entry.row < articles.num_rows:
                raise DamageError(f"{path}: row {entry.row} is not a row of the set")
            yield entry.id, entry.row
