"""Predictions for the lines of a log that were refused when its shard set was built.

MIND's scoring goes through prediction and log line by line, so a line that is not there shifts
nothing and fails everything. A refused impression gets the line of a user without any preference.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from shards.mind import BEHAVIORS_NAME, find_member
from shards.ragged import offsets_from_lengths
from shards.sources import InputFile
from trainer.errors import DataError
from trainer.evaluate.lines import read_lines
from trainer.evaluate.scoring import ImpressionScores, lay_scores

_ROWS = 65536


def log_lines(behaviors: str | Path) -> Iterator[tuple[str, int]]:
    """Yield (impression id, number of candidates) of every line of a log that is not blank.

    Args:
        behaviors: ``behaviors.tsv``, perhaps ``.gz``, or a folder or zip that holds it.

    Raises:
        DataError: There is no such file.
        DamageError: It cannot be read to its end.
    """
    source = find_member(Path(behaviors), BEHAVIORS_NAME) or InputFile(Path(behaviors))
    for line in read_lines(source):
        columns = line.data.decode("utf-8", "replace").split("\t")
        if line.data:
            yield columns[0].strip(), len(columns[4].split()) if len(columns) == 5 else 0


def with_refused(
    scored: ImpressionScores, ids: Iterable[str], behaviors: str | Path
) -> ImpressionScores:
    """Scores of every line of the log: those of the set, and all the same for refused lines.

    Args:
        scored: Of the impressions of the set.
        ids: Their ids, in their order.
        behaviors: The log that the set was built from.

    Returns:
        Scores and offsets in the order of :func:`log_lines`.

    Raises:
        DataError: An impression of the set is not in the log, or not in this order.
    """
    impressions = zip(ids, np.diff(scored.offsets).tolist(), strict=True)
    wanted = next(impressions, None)
    sizes, kept = array("q"), array("q")
    for line in log_lines(behaviors):
        if line == wanted:
            kept.append(len(sizes))
            wanted = next(impressions, None)
        sizes.append(line[1])
    if wanted is not None:
        raise DataError(
            f"{behaviors} is not the log that the set was built from: impression {wanted[0]} with "
            f"{wanted[1]} candidates is not in it, or not behind the one before"
        )
    offsets = offsets_from_lengths(np.array(sizes, dtype=np.int64))
    places = np.array(kept, dtype=np.int64)
    scores = np.zeros(int(offsets[-1]), dtype=np.float32)
    for start in range(0, len(places), _ROWS):
        ends = scored.offsets[start : start + _ROWS + 1]
        part = scored.scores[ends[0] : ends[-1]]
        lay_scores(scores, offsets, places[start : start + _ROWS], part)
    return ImpressionScores(scores, offsets)
