"""Titles that the micro-batches of several ranks name: each encoded once, on one of the ranks.

Every rank knows what the others read, because order and negatives are pure functions of the run, so
nothing is sent to agree on the titles. Each rank encodes its share of the distinct ones; their
vectors are gathered on all ranks, and the gradients that all ranks have for a vector are summed on
the rank that encoded it. The gradient of the global batch is that of ranks that encode for
themselves, up to rounding: the engine averages over ranks what each has for its own weights, and
every contribution of every rank is in there once.

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
    """What one rank encodes of the titles that all ranks name.

    Attributes:
        rows_S: article rows that this rank encodes.
        named_G: article rows of all titles, ascending.
        place_G: where each of them is among the shares of all ranks laid end to end.
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
        """Deal out the titles that all ranks name.

        Args:
            named: article rows, int64[k]; may repeat.
            lengths_of: lengths in tokens of articles, for even shares.
            ranks: R.
            rank: which share.
        """
        named_G = np.unique(named)
        dealt_RS = deal(lengths_of(named_G), ranks)
        place_G = np.empty(len(named_G), dtype=np.int64)
        place_G[dealt_RS.ravel()] = np.arange(dealt_RS.size)
        return cls(named_G[dealt_RS[rank]], named_G, place_G)

    def places(self, rows_U: np.ndarray) -> np.ndarray:
        """Where some of the titles are among all shares laid end to end, int64[U]."""
        return self.place_G[np.searchsorted(self.named_G, rows_U)]


def deal(lengths_G: np.ndarray, ranks: int) -> np.ndarray:
    """Deal titles out to ranks, so that all have as many, of like lengths.

    Longest first, there and back again, so that no rank always has the longest of a round. Where
    the last round is not full the shortest title comes again: vectors are gathered in shares of one
    size.

    Args:
        lengths_G: int64[G], in tokens; at least one.
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
    """Vectors [U, E] of the texts that this rank's samples name; called by all ranks alike."""
    vectors_SE = encode_texts(encode, texts)
    if texts.shared is None:
        return vectors_SE
    from torch.distributed.nn.functional import all_gather

    # In fp32 at least, so that the sum of the ranks' gradients is not rounded further.
    return torch.cat(all_gather(widen(vectors_SE)))[texts.shared]
