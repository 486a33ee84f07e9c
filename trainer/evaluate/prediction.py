"""MIND's prediction file: ranks of the candidates of every impression, in a zip.

``prediction.txt`` has one line an impression, in the order of the log: the impression's id, a
space, and the ranks of its candidates in their own order as ``[r1,r2,...]`` without spaces, 1 =
best. Ranks written here have no ties and are the same on every run; reading accepts what MIND's own
scoring accepts.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shards.files import atomic_file
from trainer.errors import DataError
from trainer.evaluate.metrics import Metrics, ranking_metrics, ranks_without_ties

MEMBER = "prediction.txt"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date in the zip: equal predictions are equal bytes


def write_prediction(
    path: str | Path, ids: Sequence[str], scores: np.ndarray, offsets: np.ndarray
) -> None:
    """Write ``prediction.txt`` into a zip and check what was written.

    Args:
        path: The zip; it appears only when it is whole.
        ids: Impression ids, n of them, in the order of the log.
        scores: float[K] scores of all candidates, higher is better, finite.
        offsets: int64[n+1] places of each impression's scores.

    Raises:
        DataError: Counts differ, a score is not finite, or an id has a space in it.
    """
    if len(ids) != len(offsets) - 1:
        raise DataError(f"{len(ids)} impression ids for {len(offsets) - 1} impressions")
    broken = np.flatnonzero(~np.isfinite(scores))
    if len(broken):
        place = int(np.searchsorted(offsets, broken[0], side="right")) - 1
        raise DataError(
            f"impression {ids[place]}: {len(broken)} scores are not finite; nothing was written"
        )
    ranks = ranks_without_ties(scores, offsets)
    member = zipfile.ZipInfo(MEMBER, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    with atomic_file(path) as file:
        with (
            zipfile.ZipFile(file, "w") as archive,
            archive.open(member, "w", force_zip64=True) as raw,
            io.TextIOWrapper(raw, encoding="utf-8", newline="\n") as text,
        ):
            for line in _lines(ids, ranks, offsets):
                text.write(line)
        validate_prediction(file.name, ids, np.diff(offsets))


def validate_prediction(
    path: str | Path, ids: Sequence[str], sizes: Iterable[int] | np.ndarray
) -> None:
    """Check a prediction zip against the log it is for.

    Args:
        path: The zip.
        ids: Impression ids in the order of the log.
        sizes: Candidates of each impression.

    Raises:
        DataError: Another number of lines, another id, or ranks that are not 1..n each once; names
            the line.
    """
    expected = list(zip(ids, sizes, strict=True))
    number = 0
    for number, line in enumerate(read_lines(path), start=1):
        if number > len(expected):
            raise DataError(f"{path}: line {number} is one more than the log's {len(expected)}")
        found, ranks = parse_line(line, number, path)
        wanted, size = expected[number - 1]
        if found != wanted:
            raise DataError(f"{path}: line {number} is for impression {found}, expected {wanted}")
        if sorted(ranks) != list(range(1, size + 1)):
            raise DataError(
                f"{path}: line {number}, impression {found}: ranks must be 1 to {size}, each once"
            )
    if number != len(expected):
        raise DataError(f"{path}: {number} lines for the log's {len(expected)} impressions")


def score_prediction(path: str | Path, truth: Iterable[tuple[str, Sequence[int]]]) -> Metrics:
    """Score a prediction file against labels, as MIND's own procedure does.

    A candidate's score is 1/rank, so equal ranks tie. An impression without labels is passed over,
    its line still read. Lines that are missing at the end count as all ranks 1. One thing is
    stricter: MIND's procedure has no answer for an impression of one class, here it is skipped and
    counted.

    Args:
        path: ``prediction.zip`` or a bare ``prediction.txt``.
        truth: (impression id, labels) in the order of the log; labels may be empty.

    Raises:
        DataError: An id differs, the numbers of ranks and labels differ, or a rank is below 1.
    """
    lines = read_lines(path)
    scores: list[float] = []
    labels: list[int] = []
    offsets = [0]
    for number, (wanted, clicked) in enumerate(truth, start=1):
        line = next(lines, None)
        if not clicked:
            continue
        if line is None:
            found, ranks = wanted, [1.0] * len(clicked)
        else:
            found, ranks = parse_line(line, number, path)
        if found != wanted:
            raise DataError(f"{path}: line {number} is for impression {found}, expected {wanted}")
        if len(ranks) != len(clicked):
            raise DataError(
                f"{path}: line {number}, impression {found}: {len(ranks)} ranks for "
                f"{len(clicked)} candidates"
            )
        if min(ranks) < 1:
            raise DataError(
                f"{path}: line {number}, impression {found}: rank {min(ranks)} is below 1"
            )
        scores.extend(1.0 / rank for rank in ranks)
        labels.extend(clicked)
        offsets.append(len(labels))
    return ranking_metrics(np.array(scores, float), np.array(labels, np.uint8), np.array(offsets))


def read_lines(path: str | Path) -> Iterator[str]:
    """Lines of ``prediction.txt``, from a zip that holds it or from the bare file, without newline.

    Raises:
        DataError: No such file, no such member, or not UTF-8 text.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source} does not exist")
    try:
        if not zipfile.is_zipfile(source):
            with source.open(encoding="utf-8") as text:
                yield from (line.rstrip("\r\n") for line in text)
            return
        with zipfile.ZipFile(source) as archive:
            if MEMBER not in archive.namelist():
                held = ", ".join(archive.namelist()[:3]) or "nothing"
                raise DataError(f"{source} holds {held}; expected {MEMBER}")
            with archive.open(MEMBER) as raw, io.TextIOWrapper(raw, encoding="utf-8") as text:
                yield from (line.rstrip("\r\n") for line in text)
    except (UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f"{source} cannot be read: {error}") from error


def parse_line(line: str, number: int, path: str | Path) -> tuple[str, list[float]]:
    """Split ``<id> [r1,r2,...]`` into the id and the ranks.

    Raises:
        DataError: The line has not two fields, or the second is no list of numbers.
    """
    fields = line.split()
    try:
        if len(fields) != 2:
            raise ValueError(f"{len(fields)} fields separated by spaces")
        ranks = json.loads(fields[1])
        if not isinstance(ranks, list) or not all(type(rank) in (int, float) for rank in ranks):
            raise ValueError("the second field is no list of numbers")
    except ValueError as error:
        raise DataError(
            f"{path}: line {number} is {line[:60]!r} ({error}); expected an impression id, one "
            "space, and ranks as [2,1,3] without spaces inside"
        ) from error
    return fields[0], ranks


def _lines(ids: Sequence[str], ranks: np.ndarray, offsets: np.ndarray) -> Iterator[str]:
    plain = ranks.tolist()
    for place, one in enumerate(ids):
        if not one or one.split() != [one]:
            raise DataError(
                f"impression id {one!r} is empty or has a space; MIND's file cannot hold it"
            )
        inside = ",".join(map(str, plain[offsets[place] : offsets[place + 1]]))
        yield f"{one} [{inside}]\n"
