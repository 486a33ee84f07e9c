"""Reading the states of a batch's texts. Only NumPy here.

Shapes: U texts, u texts of a sub-batch, L tokens, D width.
"""

from dataclasses import dataclass

import numpy as np

from shards.columns import ColumnReader
from shards.length_groups import length_groups
from trainer.frozen.identity import STATES


@dataclass(frozen=True)
class StateGroup:
    """One sub-batch: texts of like lengths, padded with zeros to the longest of them."""

    states: np.ndarray
    """[u, L, D] as stored."""
    mask: np.ndarray
    """int64[u, L], 1 where there is a token."""
    places: np.ndarray
    """int64[u], which of the rows that were asked for each text is."""


class StateView:
    """The texts of an article set as states, by row: what :class:`shards.texts.TextView` is for
    token ids.

    Args:
        reader: The column.
        max_tokens: Longest text in tokens.
    """

    def __init__(self, reader: ColumnReader, max_tokens: int) -> None:
        self.reader = reader
        self.max_tokens = max_tokens

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Lengths of the texts in tokens, special tokens included, int64[n]."""
        return self.reader.lengths(STATES, rows)

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Some texts as one batch: (states [U, L, D] as stored, mask int64[U, L]).

        Raises:
            IndexError: A row is not within the set.
        """
        return _lay_out(*self.reader.gather_ragged(STATES, rows))

    def groups(
        self, rows: np.ndarray, batch_tokens: int, exactly: int | None = None
    ) -> list[StateGroup]:
        """The same texts in sub-batches, as :meth:`shards.texts.TextView.groups` cuts them.

        Args:
            rows: int64[U]; may repeat.
            batch_tokens: Tokens a sub-batch at most, padding included.
            exactly: Number of sub-batches, None for as many as the budget needs.

        Raises:
            IndexError: A row is not within the set.
        """
        places = length_groups(self.lengths(rows), batch_tokens, exactly)
        if not places:
            return []
        values, offsets = self.reader.gather_ragged(
            STATES, np.asarray(rows)[np.concatenate(places)]
        )
        out, start = [], 0
        for group in places:
            within = offsets[start : start + len(group) + 1]
            parts = _lay_out(values[within[0] : within[-1]], within - within[0])
            out.append(StateGroup(*parts, group))
            start += len(group)
        return out


def _lay_out(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States laid end to end as [u, L, D] with their mask."""
    lengths = np.diff(offsets)
    longest = int(lengths.max(initial=0))
    mask = np.arange(longest) < lengths[:, None]
    if mask.all():
        states = values.reshape(len(lengths), longest, -1)
    else:
        states = np.zeros((len(lengths), longest, values.shape[1]), values.dtype)
        states[mask] = values
    return states, mask.astype(np.int64)
