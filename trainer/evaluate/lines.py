"""Lines of MIND's prediction and log files, read some thousands at a time.

Such files have up to a hundred million numbers. In well-formed lines, NumPy reads the numbers of a
block without a Python object for each; any other block is read line by line, which decides what is
accepted and names a bad line.

Legend: L lines of a block, K numbers in all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from shards.errors import DataError
from shards.ragged import offsets_from_lengths
from shards.sources import MAX_ROW_BYTES, InputFile

BLOCK_LINES = 4096
_NEWLINE, _TAB, _SPACE, _COMMA, _MINUS, _ZERO, _OPEN, _CLOSE = b"\n\t ,-0[]"
_MOST_DIGITS = 9


class Line(NamedTuple):
    """A line with its number in the file, from 1."""

    number: int
    data: bytes


class Lists(NamedTuple):
    """An id and a list of numbers for each line of a block."""

    ids: list[bytes]
    values: np.ndarray
    """float64[K]."""
    offsets: np.ndarray
    """int64[L+1]: line i has values ``offsets[i]:offsets[i+1]``."""


Parser = Callable[[bytes], tuple[bytes, list[float]]]
"""Parses one line; its ``ValueError`` says what is wrong with the line."""


def read_lines(file: InputFile) -> Iterator[Line]:
    """Yield the lines of a file.

    Raises:
        DataError: A line is longer than any line that MIND's files could have.
        DamageError: The file cannot be read to its end.
    """
    for number, data in file.lines():
        if data is None:
            raise DataError(f"{file.name}, line {number} has more than {MAX_ROW_BYTES:,} bytes")
        yield Line(number, data)


def take(lines: Iterator[Line], count: int) -> list[Line]:
    """Return the next lines, at most ``count``."""
    return list(islice(lines, count))


def parse_ranks(lines: Sequence[Line], name: str) -> Lists:
    """Parse lines of a prediction file: an id, one space, ranks as ``[2,1,3]``.

    Args:
        lines: Lines of one block.
        name: Name of the file, for messages.

    Raises:
        DataError: A line has another form; names it.
    """
    return _fast_ranks(_joined(lines), len(lines)) or one_by_one(
        lines,
        ranks_of_line,
        f"{name}: line",
        "expected an impression id, one space, and ranks as [2,1,3] without spaces inside",
    )


def parse_labels(lines: Sequence[Line], name: str) -> Lists:
    """Parse lines of a labelled ``behaviors.tsv``: the values are 0 and 1.

    Args:
        lines: Lines of one block.
        name: Name of the file, for messages.

    Raises:
        DataError: A line has another form, or a candidate has no label; names the line.
    """
    return _fast_labels(_joined(lines), len(lines)) or one_by_one(
        lines,
        labels_of_line,
        f"{name}, line",
        "expected five columns separated by tabs, the last with candidates as N1-0 N2-1; a test "
        "log, without labels, cannot be scored here",
    )


def _joined(lines: Sequence[Line]) -> bytes:
    return b"".join([line.data + b"\n" for line in lines])


def one_by_one(lines: Sequence[Line], parse: Parser, where: str, expected: str) -> Lists:
    """Parse the lines of a block one by one, whatever their form.

    Args:
        lines: Lines of one block.
        parse: Parser of one line.
        where: Text before a line's number in messages.
        expected: Description of a valid line, for messages.

    Raises:
        DataError: A line is invalid; names it.
    """
    ids, values, lengths = [], [], []
    for number, data in lines:
        try:
            found, numbers = parse(data)
        except (ValueError, RecursionError) as error:
            text = data[:60].decode("utf-8", "backslashreplace")
            raise DataError(f"{where} {number} is {text!r} ({error}); {expected}") from error
        ids.append(found)
        values += numbers
        lengths.append(len(numbers))
    return Lists(ids, np.array(values, np.float64), offsets_from_lengths(np.array(lengths, int)))


def ranks_of_line(data: bytes) -> tuple[bytes, list[float]]:
    """Parse one line of a prediction file, as MIND's own procedure does.

    Raises:
        ValueError: The line is not valid.
    """
    fields = data.decode("utf-8").split()
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields separated by spaces")
    ranks = json.loads(fields[1])
    if not isinstance(ranks, list) or not all(type(rank) in (int, float) for rank in ranks):
        raise ValueError("the second field is not a list of numbers")
    try:
        return fields[0].encode(), [float(rank) for rank in ranks]
    except OverflowError as error:
        raise ValueError("a rank is higher than any number of candidates") from error


def labels_of_line(data: bytes) -> tuple[bytes, list[float]]:
    """Parse the id and the labels of one line of ``behaviors.tsv``.

    Raises:
        ValueError: The line is not valid, or a candidate has no label.
    """
    columns = data.decode("utf-8").split("\t")
    if len(columns) != 5:
        raise ValueError(f"{len(columns)} columns")
    items = [item.rpartition("-") for item in columns[4].split()]
    if any(not dash or label not in ("0", "1") for _, dash, label in items):
        raise ValueError("a candidate has no label -0 or -1")
    return columns[0].strip().encode(), [float(label) for _, _, label in items]


def _fast_ranks(text: bytes, count: int) -> Lists | None:
    """Parse lines of integers below 10^9 without anything unusual, else return None."""
    if not text:
        return None
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    opens, closes = np.flatnonzero(data == _OPEN), np.flatnonzero(data == _CLOSE)
    plain = (data > _SPACE) & (data < 127)
    if not len(opens) == len(closes) == count or len(data) - plain.sum() != 2 * count:
        return None
    # Each line has one space, between the id and the list.
    if (
        (opens - 1 <= starts).any()
        or (data[opens - 1] != _SPACE).any()
        or (closes != ends - 1).any()
    ):
        return None
    depth = np.zeros(len(data), dtype=np.int8)
    depth[opens], depth[closes] = 1, -1
    inside = np.cumsum(depth, dtype=np.int8) > 0
    stops = np.flatnonzero(((data == _COMMA) & inside) | (depth < 0))
    firsts = np.searchsorted(stops, opens)
    begins = np.concatenate([np.zeros(1, np.int64), stops[:-1] + 1])
    begins[firsts] = opens + 1
    values = _whole_numbers(data, begins, stops)
    if values is None:
        return None
    ids = [
        text[start : end - 1] for start, end in zip(starts.tolist(), opens.tolist(), strict=True)
    ]
    return Lists(ids, values, np.append(firsts, len(stops)))


def _whole_numbers(data: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray | None:
    """Parse the numbers from ``begins`` to ``stops``, float64; None if one is invalid."""
    lengths = stops - begins
    most = int(lengths.max(initial=1))
    if lengths.min(initial=1) < 1 or most > _MOST_DIGITS:
        return None
    if ((data[begins] == _ZERO) & (lengths > 1)).any():
        return None  # not a number in JSON
    values = np.zeros(len(begins), dtype=np.int64)
    for place in range(most):
        has = np.flatnonzero(lengths > place) if place else slice(None)
        digits = data[stops[has] - 1 - place] - np.uint8(_ZERO)  # others wrap beyond 9
        if (digits > 9).any():
            return None
        values[has] += digits.astype(np.int64) * 10**place
    return values.astype(np.float64)


def _fast_labels(text: bytes, count: int) -> Lists | None:
    """Parse ASCII lines of five columns with single spaces between candidates, else return None."""
    if not text:
        return None
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    all_tabs = np.flatnonzero(data == _TAB)
    if len(all_tabs) != 4 * count or (data >= 127).any() or (data < _SPACE).sum() != 5 * count:
        return None
    tabs = all_tabs.reshape(count, 4)
    if (tabs[:, 0] < starts).any() or (tabs[:, 3] > ends).any():
        return None
    spaces = np.flatnonzero(data == _SPACE)
    spaces = spaces[spaces > tabs[np.searchsorted(ends, spaces), 3]]
    filled = ends[ends > tabs[:, 3] + 1]
    stops = np.sort(np.concatenate([spaces, filled]))
    labels = data[stops - 1] - np.uint8(_ZERO)
    if (labels > 1).any() or (data[stops - 2] != _MINUS).any():
        return None
    ids = [
        text[start:end].strip()
        for start, end in zip(starts.tolist(), tabs[:, 0].tolist(), strict=True)
    ]
    offsets = np.concatenate([np.zeros(1, np.int64), np.searchsorted(stops, ends, side="right")])
    return Lists(ids, labels.astype(np.float64), offsets)
