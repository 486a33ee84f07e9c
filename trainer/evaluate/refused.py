"""Predictions for lines of a log that were refused when its shard set was built.

MIND's scoring reads prediction and log line by line, so a single missing line makes it fail. A
refused impression gets the line of a user without preferences.
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
    """Yield (impression id, number of candidates) of a log's non-blank lines.

    Args:
        behaviors: ``behaviors.tsv``, perhaps ``.gz``, or a folder or zip that contains it.

    Raises:
        DataError: The file does not exist.
        DamageError: The file cannot be read to its end.
    """
    source = find_member(Path(behaviors), BEHAVIORS_NAME) or InputFile(Path(behaviors))
    for line in read_lines(source):
        columns = line.data.decode("utf-8", "replace").split("\t")
        if line.data:
            yield columns[0].strip(), len(columns[4].split()) if len(columns) == 5 else 0


def with_refused(
    scored: ImpressionScores, ids: Iterable[str], behaviors: str | Path
) -> ImpressionScores:
    """Add equal scores for refused lines to the scores of a set's impressions.

    Args:
        scored: Scores of the set's impressions.
        ids: Ids of these impressions, in their order.
        behaviors: The log from which the set was built.

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
            f"{wanted[1]} candidates is missing or comes before the previous one"
        )
    offsets = offsets_from_lengths(np.array(sizes, dtype=np.int64))
    places = np.array(kept, dtype=np.int64)
    scores = np.zeros(int(offsets[-1]), dtype=np.float32)
    for start in range(0, len(places), _ROWS):
        ends = scored.offsets[start : start + _ROWS + 1]
        part = scored.scores[ends[0] : ends[-1]]
        lay_scores(scores, offsets, places[start : start + _ROWS], part)
    return ImpressionScores(scores, offsets)
