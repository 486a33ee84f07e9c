"""Reading of the stored states of a batch's texts.

This module needs only NumPy.

Shapes: U texts, u texts of a sub-batch, L tokens, D width.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shards.columns import ColumnReader
from shards.length_groups import length_groups
from shards.ragged import offsets_from_lengths, ranges

STATES = "states"
"""Name of a column's ragged tensor: the states of a row's tokens."""


@dataclass(frozen=True)
class StateGroup:
    """One sub-batch: texts of similar lengths, padded with zeros to the longest of them."""

    states: np.ndarray
    """[u, L, D] as stored."""
    mask: np.ndarray
    """int64[u, L], 1 at tokens."""
    places: np.ndarray
    """int64[u], index of each text among the requested rows."""


class StateView:
    """The texts of an article set as states, by row.

    The counterpart of :class:`shards.texts.TextView` for token ids.

    Args:
        reader: The column.
        max_tokens: Longest text in tokens.
    """

    def __init__(self, reader: ColumnReader, max_tokens: int) -> None:
        self.reader = reader
        self.max_tokens = max_tokens

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the lengths of the texts in tokens, special tokens included, int64[n]."""
        return self.reader.lengths(STATES, rows)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return texts as one batch: (states [U, L, D] as stored, mask int64[U, L]).

        Raises:
            IndexError: A row is outside the set.
        """
        (group,) = self._lay_out(np.asarray(rows, dtype=np.int64), [np.arange(len(rows))])
        return group.states, group.mask

    def groups(
        self, rows: np.ndarray, batch_tokens: int, exactly: int | None = None
    ) -> list[StateGroup]:
        """Return the texts in sub-batches, cut as :meth:`shards.texts.TextView.groups` cuts them.

        Args:
            rows: int64[U]; may repeat.
            batch_tokens: Largest number of tokens per sub-batch, padding included.
            exactly: Number of sub-batches; None for as many as the budget needs.

        Raises:
            IndexError: A row is outside the set.
        """
        rows = np.asarray(rows, dtype=np.int64)
        return self._lay_out(rows, length_groups(self.lengths(rows), batch_tokens, exactly))

    def _lay_out(self, rows: np.ndarray, groups: list[np.ndarray]) -> list[StateGroup]:
        """Lay out sub-batches of rows at these places, in one array, without a second copy."""
        if not groups:
            return []
        order = np.concatenate(groups)
        lengths = self.lengths(rows)[order]
        sizes = np.array([len(group) for group in groups])
        begins = offsets_from_lengths(sizes)
        longest = [int(lengths[b:e].max(initial=0)) for b, e in pairwise(begins.tolist())]
        padded = np.repeat(longest, sizes)  # for every text, the length of its group
        starts = offsets_from_lengths(padded)
        dtype, shape = self.reader.tensors[f"{STATES}.values"]
        slots = np.empty((int(starts[-1]), *shape), dtype)
        self.reader.gather_ragged_into(slots, starts[:-1], STATES, rows[order])
        slots[ranges(starts[:-1] + lengths, padded - lengths)] = 0
        found = []
        for (begin, end), length, group in zip(
            pairwise(begins.tolist()), longest, groups, strict=True
        ):
            states = slots[starts[begin] : starts[end]].reshape(end - begin, length, *shape)
            mask = np.arange(length) < lengths[begin:end, None]
            found.append(StateGroup(states, mask.astype(np.int64), group))
        return found
