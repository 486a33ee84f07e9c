"""Make the text that a model reads of an article: one field, or several joined.

A joined text is ``[CLS] title [SEP] abstract [SEP]``: the fields in order, each cut to its own
length and each ended like a separate text. A missing field is omitted together with its end, so an
article without an abstract reads as its title alone.

A batch may be cut into sub-batches of similar lengths, each padded to its own longest text, so that
an encoder computes almost no padding (:func:`shards.length_groups.length_groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shards.length_groups import length_groups
from shards.ragged import offsets_from_lengths, ranges

if TYPE_CHECKING:
    from shards.tokens import TokenColumn


@dataclass(frozen=True)
class TextGroup:
    """One sub-batch: texts of similar lengths, padded to the longest of them."""

    ids: np.ndarray
    """int64[u, L]."""
    mask: np.ndarray
    """int64[u, L], 1 for each token and 0 for padding."""
    places: np.ndarray
    """int64[u], the index of each text among the requested rows."""


class TextView:
    """The texts of an article set, by row, as one model reads them.

    Attributes:
        tokens: the token column underneath.
        fields: names of the fields, in order.
        limits: length limit of each field in tokens, including special tokens.
        max_tokens: length limit of all fields together.
    """

    def __init__(self, tokens: TokenColumn, parts: Sequence[tuple[str, int]]) -> None:
        """Join fields of a token column.

        Args:
            tokens: the column.
            parts: (field, length limit in tokens, including special tokens), in order.

        Raises:
            ColumnError: the column has no such field, or stores less of it than requested.
        """
        self.tokens = tokens
        self.fields = tuple(field for field, _ in parts)
        self.limits = tuple(limit for _, limit in parts)
        for field, limit in parts:
            tokens.check(field, limit)
        prefix = len(tokens.prefix_ids)
        self.max_tokens = sum(self.limits) - prefix * (len(parts) - 1)
        self._rooms = [limit - tokens.num_special for limit in self.limits]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the lengths of the texts of :meth:`batch`, including special tokens, int64[n]."""
        return self._joined_lengths(self._inner_lengths(rows)) + self.tokens.num_special

    def batch(self, rows: np.ndarray, pad_to_max: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Make a batch for an encoder from the texts of some rows.

        Args:
            rows: int64[n]; may repeat.
            pad_to_max: make the batch ``max_tokens`` wide instead of as wide as its longest text.

        Returns:
            (input_ids int64[n, L], attention_mask int64[n, L]); an empty text is its special
            tokens.

        Raises:
            IndexError: a row is outside the set.
        """
        values, offsets = self._gather(rows)
        lengths = np.diff(offsets)
        room = self.max_tokens - self.tokens.num_special
        return self._lay_out(values, lengths, room if pad_to_max else int(lengths.max(initial=0)))

    def groups(
        self, rows: np.ndarray, batch_tokens: int, exactly: int | None = None
    ) -> list[TextGroup]:
        """Make sub-batches of similar lengths from the texts of :meth:`batch`.

        See :func:`shards.length_groups.length_groups`. Each field takes one gather for all texts;
        no step loops over texts.

        Args:
            rows: int64[n]; may repeat.
            batch_tokens: largest number of tokens in a sub-batch, including padding.
            exactly: number of sub-batches; None makes as many as the budget needs.

        Raises:
            IndexError: a row is outside the set.
        """
        places = length_groups(self.lengths(rows), batch_tokens, exactly)
        if not places:
            return []
        values, offsets = self._gather(np.asarray(rows)[np.concatenate(places)])
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

    def _inner_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the lengths of the fields without special tokens, int64[fields, n]."""
        reader = self.tokens.reader
        parts = zip(self.fields, self._rooms, strict=True)
        return np.stack([np.minimum(reader.lengths(field, rows), room) for field, room in parts])

    def _joined_lengths(self, inner_FN: np.ndarray) -> np.ndarray:
        """Return joined lengths without the first and the last special tokens, int64[n]."""
        ends = np.maximum((inner_FN > 0).sum(axis=0) - 1, 0)
        return inner_FN.sum(axis=0) + ends * len(self.tokens.suffix_ids)

    def _gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Join texts without the outermost special tokens: (values, offsets int64[n + 1])."""
        reader = self.tokens.reader
        parts = zip(self.fields, self._rooms, strict=True)
        gathered = [reader.gather_ragged(field, rows, first=room) for field, room in parts]
        for field, (values, offsets) in zip(self.fields, gathered, strict=True):
            self.tokens.check_ids(field, values, offsets, np.asarray(rows))
        if len(gathered) == 1:
            return gathered[0]
        inner_FN = np.stack([np.diff(offsets) for _, offsets in gathered])
        out_offsets = offsets_from_lengths(self._joined_lengths(inner_FN))
        suffix = np.array(self.tokens.suffix_ids, dtype=np.int64)
        out = np.empty(int(out_offsets[-1]), dtype=np.int64)
        at = out_offsets[:-1].copy()
        for (values, _), inner in zip(gathered, inner_FN, strict=True):
            follows = (inner > 0) & (at > out_offsets[:-1])
            for suffix_id in suffix:
                out[at[follows]] = suffix_id
                at += follows
            out[ranges(at, inner)] = values
            at += inner
        return out, out_offsets

    def _lay_out(
        self, values: np.ndarray, lengths: np.ndarray, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lay out texts of these lengths, int64[n], as (ids, mask) with special tokens."""
        tokens = self.tokens
        first = len(tokens.prefix_ids)
        ids = np.full((len(lengths), width + tokens.num_special), tokens.pad_id, dtype=np.int64)
        ids[:, :first] = tokens.prefix_ids
        places = np.arange(ids.shape[1])
        ends = first + lengths[:, None]
        ids[(places >= first) & (places < ends)] = values
        for i, suffix_id in enumerate(tokens.suffix_ids):
            np.put_along_axis(ids, ends + i, suffix_id, axis=1)
        mask = (places < ends + len(tokens.suffix_ids)).astype(np.int64)
        return ids, mask
