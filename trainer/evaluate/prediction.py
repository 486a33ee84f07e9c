"""MIND's prediction file: ranks of the candidates of every impression, in a zip.

``prediction.txt`` has one line per impression, in the order of the log: the impression's id, a
space, and the ranks of its candidates in their own order as ``[r1,r2,...]`` without spaces, 1 =
best. Written ranks have no ties and are the same on every run; reading accepts what MIND's own
scoring accepts. Writing and reading both process the file in blocks of lines, so memory does not
grow with it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from shards.files import atomic_file
from shards.mind import BEHAVIORS_NAME, find_member
from shards.progress import Progress
from shards.ragged import offsets_from_lengths, ranges, row_of_value
from shards.sources import InputFile, open_zip
from trainer.errors import DataError
from trainer.evaluate.encode import bar
from trainer.evaluate.lines import (
    BLOCK_LINES,
    Line,
    Lists,
    parse_labels,
    parse_ranks,
    read_lines,
    take,
)
from trainer.evaluate.metrics import Metrics, impression_metrics, ranks_without_ties

MEMBER = "prediction.txt"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date in the zip: equal predictions have equal bytes


class Scored(NamedTuple):
    """Metrics of a prediction."""

    metrics: Metrics
    num_missing: int
    """Impressions without a line, counted as all ranks 1."""
    has_more: bool
    """Whether the file has lines after the log's last impression; they are not read."""


def write_prediction(
    path: str | Path,
    ids: Iterable[str],
    scores: np.ndarray,
    offsets: np.ndarray,
    *,
    progress: bool = False,
) -> None:
    """Write ``prediction.txt`` into a zip and check what was written.

    Args:
        path: Path of the zip; it appears only when it is complete and checked.
        ids: Impression ids, n of them, in the order of the log.
        scores: float[K] scores of all candidates, higher is better, finite.
        offsets: int64[n+1] places of each impression's scores.
        progress: Whether to show progress.

    Raises:
        DataError: Counts differ, a score is not finite, or an id contains a space.
    """
    member = zipfile.ZipInfo(MEMBER, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    num = len(offsets) - 1
    num_ids, written = 0, bytearray()
    with atomic_file(path) as file, bar(2 * num, "write and check", "lines", progress) as shown:
        with (
            zipfile.ZipFile(file, "w") as archive,
            archive.open(member, "w", force_zip64=True) as text,
        ):
            source = iter(ids)
            for start in range(0, num, BLOCK_LINES):
                here = offsets[start : start + BLOCK_LINES + 1]
                block = list(islice(source, len(here) - 1))
                num_ids += len(block)
                if len(block) < len(here) - 1:
                    break
                text.write(_lines(block, scores[here[0] : here[-1]], here - here[0]))
                written += ("\n".join(block) + "\n").encode()
                shown.update(len(block))
            num_ids += sum(1 for _ in source)
        if num_ids != num:
            raise DataError(f"{num_ids} impression ids for {num} impressions")
        check_prediction(Path(file.name), io.BytesIO(written), np.diff(offsets), shown)


def check_prediction(path: Path, ids: Iterable[bytes], sizes: np.ndarray, shown: Progress) -> None:
    """Check the lines of a prediction against its log.

    Args:
        path: The zip, or a bare ``prediction.txt``.
        ids: Impression ids in the order of the log, each with a newline.
        sizes: int[n], candidates of each impression.
        shown: Progress display of the checked lines.

    Raises:
        DataError: The number of lines or an id differs, or ranks are not 1..n, each once; names the
            line.
    """
    lines, wanted = read_lines(prediction_file(path)), iter(ids)
    done = 0
    while block := take(lines, BLOCK_LINES):
        expected = [one[:-1] for one in islice(wanted, len(block))]
        if len(expected) < len(block):
            raise DataError(
                f"{path}: line {done + len(expected) + 1} is one more than the log's {len(sizes)}"
            )
        here = sizes[done : done + len(block)]
        _check_ranks(path, block, parse_ranks(block, str(path)), expected, here)
        done += len(block)
        shown.update(len(block))
    if done != len(sizes):
        raise DataError(f"{path}: {done} lines for the log's {len(sizes)} impressions")


def score_prediction(path: str | Path, behaviors: str | Path) -> Scored:
    """Score a prediction file against a labelled log, as MIND's own procedure does.

    A candidate's score is 1/rank, so equal ranks tie. An impression without candidates is skipped
    without reading its line. Lines that are missing at the end count as all ranks 1. There is one
    difference: MIND's procedure fails on an impression of one class; here it is skipped and
    counted.

    Args:
        path: ``prediction.zip`` or a bare ``prediction.txt``.
        behaviors: ``behaviors.tsv``, perhaps ``.gz``, or a folder or zip that contains it.

    Raises:
        DataError: A file is missing or a line has another form, an id differs, the numbers of ranks
            and labels differ, or a rank is below 1; names file and line.
        DamageError: A file cannot be read to its end.
    """
    source = find_member(Path(behaviors), BEHAVIORS_NAME) or InputFile(Path(behaviors))
    truth = (line for line in read_lines(source) if line.data)
    predicted = read_lines(prediction_file(path))
    parts, num_missing = [], 0
    while block := take(truth, BLOCK_LINES):
        labels = parse_labels(block, source.name)
        lines = take(predicted, len(block))
        sizes = np.diff(labels.offsets)
        asked = np.flatnonzero(sizes > 0)
        present = asked[asked < len(lines)]
        num_missing += len(asked) - len(present)
        ranks = parse_ranks([lines[place] for place in present.tolist()], str(path))
        _check_lines(Path(path), lines, present, ranks, labels)
        scores = np.ones(len(labels.values))
        scores[ranges(labels.offsets[present], sizes[present])] = 1.0 / ranks.values
        parts.append(impression_metrics(scores, labels.values, offsets_from_lengths(sizes[asked])))
    return Scored(Metrics.join(parts), num_missing, bool(take(predicted, 1)))


def prediction_file(path: str | Path) -> InputFile:
    """Return the prediction in any folder of a zip, or the bare file.

    The file is read in place; nothing is unpacked.

    Raises:
        DataError: The file does not exist, or the zip has no ``prediction.txt``, or several.
    """
    source = Path(path)
    if not source.is_file():
        raise DataError(f"{source} does not exist")
    if not zipfile.is_zipfile(source):
        return InputFile(source)
    with open_zip(source) as archive:
        held = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    members = [name for name in held if PurePosixPath(name).name == MEMBER]
    if len(members) != 1:
        names = ", ".join((members or held)[:3]) or "nothing"
        raise DataError(f"{source} holds {names}; expected one {MEMBER}")
    return InputFile(source, members[0])


def _lines(ids: list[str], scores: np.ndarray, offsets: np.ndarray) -> bytes:
    """Format the lines of some impressions."""
    finite = np.isfinite(scores)
    if not finite.all():
        place = int(row_of_value(offsets, np.flatnonzero(~finite)[:1])[0])
        broken = int((~finite[offsets[place] : offsets[place + 1]]).sum())
        raise DataError(
            f"impression {ids[place]}: {broken} scores are not finite; nothing was written"
        )
    words = list(map(str, ranks_without_ties(scores, offsets).tolist()))
    ends = offsets.tolist()
    lines = []
    for place, one in enumerate(ids):
        if one.split() != [one]:
            raise DataError(
                f"impression id {one!r} is empty or contains a space, which MIND's file does not "
                "allow"
            )
        lines.append(f"{one} [{','.join(words[ends[place] : ends[place + 1]])}]\n")
    return "".join(lines).encode()


def _check_ranks(
    path: Path, lines: list[Line], ranks: Lists, ids: list[bytes], sizes: np.ndarray
) -> None:
    """Check each line's id, and that it has each rank once."""
    _check_ids(path, lines, ranks.ids, ids)
    found = np.diff(ranks.offsets)
    owner = np.repeat(np.arange(len(lines)), found)
    counts = (ranks.values >= 1) & (ranks.values <= found[owner]) & (ranks.values % 1 == 0)
    taken = np.zeros(len(ranks.values), dtype=bool)  # n distinct ranks take n places
    taken[ranks.offsets[owner[counts]] + ranks.values[counts].astype(np.int64) - 1] = True
    wrong = np.bincount(owner[~taken], minlength=len(lines)) + (found != sizes)
    if wrong.any():
        place = int(np.argmax(wrong > 0))
        raise DataError(
            f"{path}: line {lines[place].number}, impression {ids[place].decode()}: ranks must be "
            f"1 to {sizes[place]}, each once"
        )


def _check_lines(
    path: Path, lines: list[Line], places: np.ndarray, ranks: Lists, labels: Lists
) -> None:
    """Check that lines match the impressions ``places`` of a block, as MIND's procedure does."""
    here = [lines[place] for place in places.tolist()]
    _check_ids(path, here, ranks.ids, [labels.ids[place] for place in places.tolist()])
    found, sizes = np.diff(ranks.offsets), np.diff(labels.offsets)[places]
    for place in np.flatnonzero(found != sizes)[:1].tolist():
        raise DataError(
            f"{path}: line {here[place].number}, impression {ranks.ids[place].decode()}: "
            f"{found[place]} ranks for {sizes[place]} candidates"
        )
    for worst in np.flatnonzero(~(ranks.values >= 1))[:1]:
        place = int(row_of_value(ranks.offsets, worst))
        raise DataError(
            f"{path}: line {here[place].number}, impression {ranks.ids[place].decode()}: "
            f"rank {ranks.values[worst]:g} is not 1 or more"
        )


def _check_ids(path: Path, lines: list[Line], found: list[bytes], wanted: list[bytes]) -> None:
    if found == wanted:
        return
    place = next(n for n, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    raise DataError(
        f"{path}: line {lines[place].number} is for impression "
        f"{found[place].decode('utf-8', 'backslashreplace')}, expected "
        f"{wanted[place].decode('utf-8', 'backslashreplace')}"
    )
