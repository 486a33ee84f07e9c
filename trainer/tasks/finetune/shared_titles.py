"""Titles shared by several ranks: each title is encoded once, on one of the ranks.

Every rank knows what the other ranks read, because order and negatives are pure functions of the
run, so the ranks agree on the titles without communication. Each rank encodes its share of the
distinct titles; the vectors are gathered on all ranks, and the gradients that all ranks have for a
vector are summed on the rank that encoded it. Up to rounding, the gradient of the global batch
equals that of ranks that encode their own titles: the engine averages over ranks, and every rank's
contribution is included once.

Shapes: G titles of all ranks, U of one rank, R ranks, S titles a share, E news width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.losses.precision import widen
from trainer.tasks.texts import Encode, Texts, encode_texts


@dataclass(frozen=True)
class Share:
    """One rank's share of the titles that all ranks name.

    Attributes:
        rows_S: Article rows that this rank encodes.
        named_G: Article rows of all titles, ascending.
        place_G: Place of each title in the concatenated shares of all ranks.
    """

    rows_S: np.ndarray
    named_G: np.ndarray
    place_G: np.ndarray

    @classmethod
    def of(
        cls,
        named: np.ndarray,
        lengths_of: Callable[[np.ndarray], np.ndarray],
        ranks: int,
        rank: int,
    ) -> "Share":
        """Divide the titles that all ranks name into shares.

        Args:
            named: Article rows, int64[k]; may repeat.
            lengths_of: Returns the lengths of articles in tokens, for even shares.
            ranks: R.
            rank: Rank whose share is returned.
        """
        named_G = np.unique(named)
        dealt_RS = deal(lengths_of(named_G), ranks)
        place_G = np.empty(len(named_G), dtype=np.int64)
        place_G[dealt_RS.ravel()] = np.arange(dealt_RS.size)
        return cls(named_G[dealt_RS[rank]], named_G, place_G)

    def places(self, rows_U: np.ndarray) -> np.ndarray:
        """Return the places of some titles in the concatenated shares, int64[U]."""
        return self.place_G[np.searchsorted(self.named_G, rows_U)]


def deal(lengths_G: np.ndarray, ranks: int) -> np.ndarray:
    """Divide titles among ranks evenly, by number and by length.

    The longest titles come first, and every other round goes backwards, so that no rank always gets
    the longest title of a round. If the last round is not full, the shortest title is repeated:
    vectors are gathered in shares of equal size.

    Args:
        lengths_G: Lengths in tokens, int64[G]; at least one.
        ranks: R.

    Returns:
        int64[R, S], places of the titles, S = ceil(G / R).
    """
    order_G = np.argsort(-lengths_G, kind="stable")
    rounds = -(-len(order_G) // ranks)
    dealt_SR = order_G[np.minimum(np.arange(rounds * ranks), len(order_G) - 1)]
    dealt_SR = dealt_SR.reshape(rounds, ranks)
    dealt_SR[1::2] = dealt_SR[1::2, ::-1].copy()
    return np.ascontiguousarray(dealt_SR.T)


def encode_shared(encode: Encode, texts: Texts) -> Tensor:
    """Return vectors [U, E] of the texts of this rank's samples; called by all ranks."""
    vectors_SE = encode_texts(encode, texts)
    if texts.shared is None:
        return vectors_SE
    from torch.distributed.nn.functional import all_gather

    # In fp32 at least, so that the sum of the ranks' gradients is not rounded further.
    return torch.cat(all_gather(widen(vectors_SE)))[texts.shared]
