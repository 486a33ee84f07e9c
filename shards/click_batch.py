"""Collect the articles that clicks name: their users' histories and their candidates.

Shapes: B clicks, H history slots, C = 1 + S candidates with the clicked one first.
"""

from dataclasses import dataclass

import numpy as np

from shards.block_order import BlockOrder
from shards.clicks import ClickColumn
from shards.errors import DamageError, DataError
from shards.order import EpochOrder


@dataclass(frozen=True)
class ClickRule:
    """How to read a click.

    Attributes:
        seed: the run's seed.
        num_negatives: S, unclicked candidates per click.
        history_length: H, number of the user's most recent clicks to read.
        static_negatives: draw negatives once for all epochs instead of anew in every epoch.
    """

    seed: int
    num_negatives: int
    history_length: int
    static_negatives: bool = False


@dataclass(frozen=True)
class ClickBatch:
    """The articles of B clicks.

    Attributes:
        impression_B: rows of the clicks' impressions.
        positions_BC: positions of the candidates within their impressions.
        history_BH: article rows, right-aligned, -1 in empty slots.
        mask_BH: False in empty slots.
        candidates_BC: article rows.
    """

    impression_B: np.ndarray
    positions_BC: np.ndarray
    history_BH: np.ndarray
    mask_BH: np.ndarray
    candidates_BC: np.ndarray

    def __len__(self) -> int:
        """Return the number of clicks B."""
        return len(self.impression_B)

    def part(self, first: int, count: int) -> "ClickBatch":
        """Return ``count`` clicks, starting with click ``first``."""
        kept = slice(first, first + count)
        return ClickBatch(
            self.impression_B[kept],
            self.positions_BC[kept],
            self.history_BH[kept],
            self.mask_BH[kept],
            self.candidates_BC[kept],
        )

    def trimmed(self) -> "ClickBatch":
        """Remove history slots that are empty in all clicks, but keep at least one slot."""
        longest = max(int(self.mask_BH.sum(axis=1).max(initial=0)), 1)
        return ClickBatch(
            self.impression_B,
            self.positions_BC,
            self.history_BH[:, -longest:],
            self.mask_BH[:, -longest:],
            self.candidates_BC,
        )

    def named(self) -> np.ndarray:
        """Return the article rows of the filled history slots, then of the candidates, int64[k].

        An article occurs as often as it is named.
        """
        return np.concatenate([self.history_BH[self.mask_BH], self.candidates_BC.ravel()])


def read_clicks(
    clicks: ClickColumn, rule: ClickRule, units: np.ndarray, epochs: np.ndarray
) -> ClickBatch:
    """Read some clicks of an epoch, with their negatives.

    Args:
        clicks: the click log.
        rule: how to read them.
        units: int64[B], unit numbers.
        epochs: int64[B], the epoch of each click.

    Raises:
        IndexError: a unit number is out of range.
        DataError: the log has no labels.
        DamageError: the column contradicts itself.
    """
    impression_B, position_B = clicks.click(units)
    drawn_in = np.zeros_like(epochs) if rule.static_negatives else epochs
    negative_BS = clicks.sample_negatives(rule.seed, units, drawn_in, rule.num_negatives)
    positions_BC = np.concatenate([position_B[:, None], negative_BS], axis=1)
    values, offsets = clicks.candidates(impression_B)
    if (position_B >= np.diff(offsets)).any():
        raise DamageError(
            f"{clicks.reader.folder} has a click beyond the candidates of its impression: it was "
            f"edited; run `{clicks.reader.repair}` after removing it"
        )
    history_BH, mask_BH = clicks.history(impression_B, rule.history_length)
    candidates_BC = values[offsets[:-1, None] + positions_BC]
    return ClickBatch(impression_B, positions_BC, history_BH, mask_BH, candidates_BC)


def click_order(
    clicks: ClickColumn,
    seed: int,
    window_shards: int = 4,
    user_block: int = 1,
    skipped: np.ndarray | None = None,
) -> EpochOrder:
    """Make the order in which training visits the clicks of a log.

    Args:
        clicks: the click log.
        seed: the run's seed.
        window_shards: clicks are shuffled within windows of this many shards.
        user_block: largest number of one user's clicks in a window that stay together; with 1 each
            click is shuffled alone.
        skipped: clicks to leave out of the order, int64[k].

    Raises:
        DataError: the log has no clicks, or has no labels.
        ValueError: ``window_shards`` or ``user_block`` is below 1.
    """
    shard_set = clicks.reader.shard_set
    if not clicks.labelled:
        raise DataError(
            f"{shard_set.location} has no labels: its log does not say what was clicked, so it"
            " cannot be trained on; build a log whose candidates end in -1 (clicked) or -0, such as"
            " MINDlarge_train's"
        )
    counts, fingerprint = clicks.clicks_per_shard, shard_set.fingerprint
    if user_block == 1:
        return EpochOrder(counts, fingerprint, seed, window_shards, skipped)

    def users(units: np.ndarray) -> np.ndarray:
        return clicks.user(clicks.click(units)[0])

    return BlockOrder(
        counts,
        f"{fingerprint} by user",
        seed,
        window_shards,
        skipped,
        groups=users,
        block_units=user_block,
    )
