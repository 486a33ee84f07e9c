"""Batches of token ids out of a token column: special tokens added, cut and padded, without a
loop.

A batch may be cut into sub-batches of like lengths, each padded to its own longest text, so that
an encoder computes almost no padding (:func:`length_groups`).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from shards.columns import ColumnReader, repair_command
from shards.errors import ColumnError
from shards.reader import ShardSet
from shards.tokenize import FIELDS, SKIPPED, TOKENIZER_FOLDER, TOKENS


@dataclass(frozen=True)
class TextGroup:
    """One sub-batch: texts of like lengths, padded to the longest of them."""

    ids: np.ndarray
    """int64[u, L]."""
    mask: np.ndarray
    """int64[u, L], 1 where there is a token."""
    places: np.ndarray
    """int64[u], which of the rows that were asked for each text is."""


def most_groups(num_texts: int, max_tokens: int, batch_tokens: int) -> int:
    """The most sub-batches that the budget alone cuts ``num_texts`` texts of up to ``max_tokens``
    into, whatever their lengths: each takes at least so many as would fit if all were longest."""
    return -(-num_texts // max(batch_tokens // max_tokens, 1))


def length_groups(
    lengths: np.ndarray, batch_tokens: int, exactly: int | None = None
) -> list[np.ndarray]:
    """Cut texts into groups of like lengths under a budget of tokens.

    The texts are sorted by length, the longest first (so that a batch that does not fit in memory
    is the first one); each group takes as many as fit, and is cut further where that saves padding
    of an eighth of the budget or more, as a group has a cost of its own.

    Args:
        lengths: int64[n], of the texts in tokens.
        batch_tokens: tokens a group, padding to its longest text included; one text always fits.
        exactly: so many groups, whatever is saved; where there are fewer texts than groups, the
            last text comes again. At least as many as the budget needs.

    Returns:
        Places of the texts, int64[u] a group.

    Raises:
        ValueError: the budget needs more groups than ``exactly``.
    """
    order = np.argsort(-lengths, kind="stable")
    starts = [0]
    while starts[-1] < len(order):
        longest = max(int(lengths[order[starts[-1]]]), 1)
        starts.append(min(starts[-1] + max(batch_tokens // longest, 1), len(order)))
    if len(starts) == 1:
        return []
    if exactly is not None and len(starts) > exactly + 1:
        raise ValueError(
            f"{len(lengths)} texts need {len(starts) - 1} groups of {batch_tokens} tokens, "
            f"not {exactly}"
        )
    starts = _cut_further(lengths[order], starts, batch_tokens // 8, exactly)
    groups = [order[start:stop] for start, stop in pairwise(starts)]
    if exactly is not None:
        groups += [groups[-1][-1:]] * (exactly - len(groups))
    return groups


def _cut_further(
    lengths: np.ndarray, starts: list[int], worth: int, exactly: int | None
) -> list[int]:
    """Cut descending lengths where most padding is saved, until a cut saves less than ``worth``
    tokens, or there are ``exactly`` groups or one text a group."""
    best = {start: _best_cut(lengths, start, stop) for start, stop in pairwise(starts)}
    ends = dict(pairwise(starts))
    while exactly is None or len(ends) < exactly:
        start = max(best, key=lambda start: best[start])
        saved, at = best[start]
        if saved < 0 or (exactly is None and saved < max(worth, 1)):
            break
        stop = ends[start]
        ends[start], ends[at] = at, stop
        best[start], best[at] = _best_cut(lengths, start, at), _best_cut(lengths, at, stop)
    return [*sorted(ends), len(lengths)]


def _best_cut(lengths: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """(tokens saved, place) of the best cut of one group; -1 saved where it has a single text."""
    if stop - start < 2:
        return -1, start
    inner = np.arange(start + 1, stop)
    saved = (lengths[start] - lengths[inner]) * (stop - inner)
    at = int(np.argmax(saved))
    return int(saved[at]), int(inner[at])


class TokenColumn:
    """The token ids of an article set, by row.

    Attributes:
        reader: the column underneath.
        tokenizer_sha256: hash of the tokenizer.
        vocab_size: one more than the largest id.
        pad_id: id of padding.
        prefix_ids: ids before each text ([CLS]).
        suffix_ids: ids after each text ([SEP]).
        title_tokens: longest title stored, special tokens included.
        body_tokens: longest body stored, special tokens included.
        tokenizer_dir: folder of the tokenizer, for ``AutoTokenizer.from_pretrained``.
    """

    def __init__(self, reader: ColumnReader) -> None:
        """Use :meth:`open`."""
        made_from = reader.made_from
        self.reader = reader
        self.fingerprint = reader.fingerprint
        self.folder = reader.folder
        self.num_rows = reader.num_rows
        self.tokenizer_sha256: str = made_from["tokenizer_sha256"]
        self.vocab_size: int = made_from["vocab_size"]
        self.pad_id: int = made_from["pad_id"]
        self.prefix_ids: list[int] = made_from["prefix_ids"]
        self.suffix_ids: list[int] = made_from["suffix_ids"]
        self.title_tokens: int = made_from["title_tokens"]
        self.body_tokens: int = made_from["body_tokens"]
        self.tokenizer_dir: Path = reader.folder / TOKENIZER_FOLDER

    @classmethod
    def open(cls, shard_set: ShardSet, folder_name: str | None = None) -> "TokenColumn":
        """Open the token column of an article set.

        Args:
            shard_set: the set.
            folder_name: which one (``tokens-0123456789ab``); None takes the only one.

        Raises:
            ColumnError: there is none, there are several, or it is not complete; the message says
                what to run.
        """
        if folder_name is None:
            reader = ColumnReader.open(shard_set, TOKENS)
        else:
            reader = ColumnReader.open_folder(shard_set, folder_name)
            if reader.name != TOKENS:
                raise ColumnError(f"{reader.folder} holds {reader.name!r}, not tokens")
        column = cls(reader)
        if not column.tokenizer_dir.is_dir():
            raise ColumnError(
                f"{column.tokenizer_dir} is missing; run `{repair_command(shard_set, TOKENS)}`"
            )
        return column

    @cached_property
    def skipped_rows(self) -> np.ndarray:
        """Rows whose samples were damaged when they were tokenized, int64[k] ascending.

        Their texts are empty here; whoever trains on the column leaves them out.
        """
        starts = self.reader.shard_set.shard_starts
        found = [np.empty(0, dtype=np.int64)]
        for shard in self.reader.cells_with(SKIPPED):
            found.append(np.flatnonzero(self.reader.cell(shard)[SKIPPED]) + starts[shard])
        return np.concatenate(found)

    @property
    def num_special(self) -> int:
        """Special tokens added to each text."""
        return len(self.prefix_ids) + len(self.suffix_ids)

    def stored_tokens(self, field: str) -> int:
        """Longest text of ``field`` that can be asked for, special tokens included."""
        if field not in FIELDS:
            raise ColumnError(f"texts are {' and '.join(FIELDS)}, not {field!r}")
        return self.title_tokens if field == "title" else self.body_tokens

    def lengths(self, field: str, rows: np.ndarray, max_tokens: int) -> np.ndarray:
        """Lengths of the texts as :meth:`batch` gives them, special tokens included, int64[n]."""
        self._check(field, max_tokens)
        stored = self.reader.lengths(field, rows)
        return np.minimum(stored, max_tokens - self.num_special) + self.num_special

    def batch(
        self, field: str, rows: np.ndarray, max_tokens: int, pad_to_max: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texts of some rows as a batch for an encoder.

        Args:
            field: ``title`` or ``body``.
            rows: int64[n]; may repeat.
            max_tokens: cut longer texts to this many, special tokens included.
            pad_to_max: make the batch ``max_tokens`` wide instead of as wide as its longest text.

        Returns:
            (input_ids int64[n, L], attention_mask int64[n, L]); an empty text is its special
            tokens.

        Raises:
            ColumnError: more tokens are asked for than were stored.
            IndexError: a row is not within the set.
        """
        self._check(field, max_tokens)
        room = max_tokens - self.num_special
        values, offsets = self.reader.gather_ragged(field, rows, first=room)
        lengths = np.diff(offsets)
        return self._lay_out(values, lengths, room if pad_to_max else int(lengths.max(initial=0)))

    def groups(
        self,
        field: str,
        rows: np.ndarray,
        max_tokens: int,
        batch_tokens: int,
        exactly: int | None = None,
    ) -> list[TextGroup]:
        """The same texts as :meth:`batch` in sub-batches of like lengths, see
        :func:`length_groups`.

        One gather for all of them; nothing is done text by text.

        Args:
            field: ``title`` or ``body``.
            rows: int64[n]; may repeat.
            max_tokens: cut longer texts to this many, special tokens included.
            batch_tokens: tokens a sub-batch at most, padding included.
            exactly: number of sub-batches, None for as many as the budget needs.

        Raises:
            ColumnError: more tokens are asked for than were stored.
            IndexError: a row is not within the set.
        """
        lengths = self.lengths(field, rows, max_tokens)
        places = length_groups(lengths, batch_tokens, exactly)
        if not places:
            return []
        sorted_rows = np.asarray(rows)[np.concatenate(places)]
        room = max_tokens - self.num_special
        values, offsets = self.reader.gather_ragged(field, sorted_rows, first=room)
        out = []
        start = 0
        for group in places:
            stop = start + len(group)
            inner = np.diff(offsets[start : stop + 1])
            ids, mask = self._lay_out(
                values[offsets[start] : offsets[stop]], inner, int(inner.max(initial=0))
            )
            out.append(TextGroup(ids, mask, group))
            start = stop
        return out

    def _lay_out(
        self, values: np.ndarray, lengths: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Texts laid end to end, int64[n] of these lengths, as (ids, mask) with special tokens."""
        first = len(self.prefix_ids)
        ids = np.full((len(lengths), width + self.num_special), self.pad_id, dtype=np.int64)
        ids[:, :first] = self.prefix_ids
        places = np.arange(ids.shape[1])
        ends = first + lengths[:, None]
        ids[(places >= first) & (places < ends)] = values
        for i, suffix_id in enumerate(self.suffix_ids):
            np.put_along_axis(ids, ends + i, suffix_id, axis=1)
        mask = (places < ends + len(self.suffix_ids)).astype(np.int64)
        return ids, mask

    def _check(self, field: str, max_tokens: int) -> None:
        stored = self.stored_tokens(field)
        if max_tokens > stored:
            shard_set = self.reader.shard_set
            raise ColumnError(
                f"{max_tokens} tokens of each {field} are asked for, the column {self.folder.name} "
                f"stores {stored}; lower data.max_{field}_tokens, or run "
                f"`{repair_command(shard_set, TOKENS)} --{field}-tokens {max_tokens}`"
            )
        if max_tokens <= self.num_special:
            raise ColumnError(
                f"{max_tokens} tokens of each {field} leave no room beside {self.num_special} "
                "special tokens"
            )
