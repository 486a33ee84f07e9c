"""Order units in short blocks of one group, whose units share reads.

Clicks of one user share the user's history, so a batch that holds several clicks of a user names
fewer distinct titles. The price is independence: a batch of n clicks in blocks of k covers about
n / k users instead of n, so the gradient is noisier than that of n clicks drawn one by one. Every
unit still occurs exactly once per epoch, and the order is still a pure function of (fingerprint,
seed, epoch).
"""

from collections.abc import Callable, Sequence

import numpy as np

from shards.order import EpochOrder, keyed_draws, keyed_permutation
from shards.ragged import offsets_from_lengths, ranges

Groups = Callable[[np.ndarray], np.ndarray]
"""Function from units to the numbers of their groups: int64[n] to int[n]."""


class BlockOrder(EpochOrder):
    """The order of an epoch, in blocks of units of one group.

    In every window the units of a group are cut, in the order of the set, into as few blocks as
    ``block_units`` allows, of even size; then the blocks are shuffled. Each epoch cuts in other
    places, so a large group does not fall into the same blocks again; the units of a group that
    fits into one block always stay together.

    Only units within one window are grouped: if a group's units are spread over the whole set,
    ``window_shards`` must cover the whole set.

    Args:
        counts: see :class:`shards.order.EpochOrder`.
        fingerprint: see :class:`shards.order.EpochOrder`; it must also identify the groups.
        seed: see :class:`shards.order.EpochOrder`.
        window_shards: see :class:`shards.order.EpochOrder`.
        skipped: see :class:`shards.order.EpochOrder`.
        groups: the function that gives the group of each unit; called for one window at a time.
        block_units: largest number of units in a block.

    Raises:
        DataError: the order has no unit.
        ValueError: ``block_units`` is below 1, or an argument of :class:`shards.order.EpochOrder`
            is wrong.
    """

    def __init__(
        self,
        counts: Sequence[int],
        fingerprint: str,
        seed: int,
        window_shards: int = 4,
        skipped: np.ndarray | None = None,
        *,
        groups: Groups,
        block_units: int,
    ) -> None:
        """Sum the counts; compute no order yet."""
        if block_units < 1:
            raise ValueError(f"block_units is {block_units}, expected at least 1")
        # Part of the fingerprint, so that a position of another order is refused.
        named = f"{fingerprint} in blocks of {block_units}"
        super().__init__(counts, named, seed, window_shards, skipped)
        self.block_units = int(block_units)
        self._groups = groups

    def _make_window(self, epoch: int, window: int) -> np.ndarray:
        """Return the units of one window of the epoch in order, int64[size]."""
        units = np.sort(self._units_of_window(epoch, window))
        groups = self._groups(units)
        by_group = np.argsort(groups, kind="stable")
        sorted_groups = groups[by_group]
        is_first = np.append(True, sorted_groups[1:] != sorted_groups[:-1])[: len(units)]
        firsts = np.flatnonzero(is_first)
        sizes = np.diff(np.append(firsts, len(units)))
        # Rotate each group by a random number of units, then cut it evenly.
        turns = keyed_draws(self._key("turns", epoch, window), len(sizes)) % sizes.astype(np.uint64)
        places = ranges(np.zeros_like(sizes), sizes)
        turned = (places + np.repeat(turns.astype(np.int64), sizes)) % np.repeat(sizes, sizes)
        units = units[by_group[np.repeat(firsts, sizes) + turned]]
        blocks = -(-sizes // self.block_units)
        lengths = np.diff(self._cuts(sizes, blocks))
        starts = offsets_from_lengths(lengths)[:-1]
        order = keyed_permutation(self._key("blocks", epoch, window), len(lengths))
        return units[ranges(starts[order], lengths[order])]

    @staticmethod
    def _cuts(sizes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Return the starts and the end of all blocks, with groups laid end to end.

        Args:
            sizes: int64[g], units of each group.
            blocks: int64[g], blocks of each group; block sizes of one group differ by at most 1.

        Returns:
            int64[sum of blocks + 1].
        """
        number = ranges(np.zeros_like(blocks), blocks)
        of_group = np.repeat(np.arange(len(sizes)), blocks)
        first = offsets_from_lengths(sizes)
        starts = first[:-1][of_group] + number * sizes[of_group] // blocks[of_group]
        return np.append(starts, first[-1])
