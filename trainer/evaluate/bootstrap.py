"""Resampling of users: intervals of means over impressions, and a paired test of two models.

Impressions of one user are alike, so the independent unit is the user: a resample draws users with
replacement, each with all its impressions (the cluster bootstrap: Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8; Field and Welsh, JRSS B, 2007). With w_u the
number of times that user u was drawn, S_u the sum of a metric over its impressions and n_u their
number, the mean of a resample is sum(w_u S_u) / sum(w_u n_u): one product of the weights with sums
by user, whatever the number of impressions.

Intervals are percentiles of the resampled means. BCa's corrections shrink with the square root of
the number of users, and for a mean of bounded values over hundreds of users or more they are
smaller than the noise of a few thousand resamples; with a handful of users, neither method is
reliable.

Only the users are resampled, never the training: intervals and p-values describe these trained
models on other users, not models that are trained again.

Legend: n impressions, U users, R resamples, K columns (metrics of one model or of several).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
"""Default number of resamples for intervals and tests."""
CONFIDENCE = 0.95
SEED = 20191115
"""Seed of all draws, so that a report is reproducible to the last digit."""
_BLOCK = 1 << 22  # weights drawn at a time: 32 MiB as float64
_TIE = 1e-12  # sums that differ by less than this share of sum |d| differ only by rounding


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float

    def text(self, digits: int = 4, *, sign: bool = False) -> str:
        """Format the interval as ``[0.6801, 0.6862]``."""
        form = f"{'+' if sign else ''}.{digits}f"
        return f"[{format(self.low, form)}, {format(self.high, form)}]"


@dataclass(frozen=True)
class UserSums:
    """Sums by user of impressions' values, which are all that resampling needs.

    Attributes:
        counts_U: float64[U], number of impressions of each user, at least one.
        sums_UK: float64[U, K].
    """

    counts_U: np.ndarray
    sums_UK: np.ndarray

    @classmethod
    def of(cls, users_n: np.ndarray, values_nK: np.ndarray) -> UserSums:
        """Sum values by user.

        Args:
            users_n: int[n], any numbers that distinguish users.
            values_nK: float[n, K].

        Raises:
            ValueError: There are no impressions, or the lengths differ.
        """
        if len(users_n) == 0 or len(users_n) != len(values_nK):
            raise ValueError(f"{len(users_n)} users for {len(values_nK)} impressions")
        _, user_n = np.unique(users_n, return_inverse=True)
        counts_U = np.bincount(user_n).astype(np.float64)
        columns = [np.bincount(user_n, weights=column) for column in values_nK.T]
        return cls(counts_U, np.stack(columns, axis=1))

    @property
    def num_users(self) -> int:
        """Number of users, U."""
        return len(self.counts_U)

    def means(self) -> np.ndarray:
        """Return means over impressions, float64[K]."""
        return self.sums_UK.sum(axis=0) / self.counts_U.sum()


def resampled_means(
    sums: UserSums, resamples: int = RESAMPLES, seed: int = SEED, block: int = _BLOCK
) -> np.ndarray:
    """Return means over impressions in resamples of the users.

    A row of the result is one resample for all K columns, so the difference of two columns is the
    resampled difference of two models on the same users.

    Args:
        sums: Values by user.
        resamples: R.
        seed: Seed of the draws.
        block: Number of weights in memory at a time; does not affect the result.

    Returns:
        float64[R, K].

    Raises:
        ValueError: ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; at least one is needed")
    with_counts = np.column_stack([sums.sums_UK, sums.counts_U])
    totals = np.concatenate(
        [
            weights_BU @ with_counts
            for weights_BU in _user_weights(sums.num_users, resamples, seed, block)
        ]
    )
    return totals[:, :-1] / totals[:, -1:]


def intervals(draws_RK: np.ndarray, confidence: float = CONFIDENCE) -> list[Interval]:
    """Return percentile intervals of K columns of resampled means.

    Args:
        draws_RK: float[R, K] from :func:`resampled_means`.
        confidence: Between 0 and 1.
    """
    tail = (1.0 - confidence) / 2.0
    low_K, high_K = np.quantile(draws_RK, [tail, 1.0 - tail], axis=0)
    return [Interval(float(low), float(high)) for low, high in zip(low_K, high_K, strict=True)]


def sign_flip_test(
    differences: UserSums, flips: int = RESAMPLES, seed: int = SEED, block: int = _BLOCK
) -> np.ndarray:
    """Test whether two models are equally good, by random signs of the users' differences.

    This is a two-sided paired permutation test over users. If a user's results might equally have
    come from the models the other way round, the sum d_u of the user's differences has either sign
    with equal odds, independently of other users. The p-value is the share of random signs s_u for
    which ``|sum(s_u d_u)|`` is at least the observed ``|sum(d_u)|``, the observed signs included:
    (1 + hits) / (1 + flips), never zero (Phipson and Smyth, 2010). If there are at most ``flips``
    patterns of signs, all are counted and the p-value is exact.

    Args:
        differences: First model minus second, by user.
        flips: Number of random patterns of signs.
        seed: Seed of the draws.
        block: Number of signs in memory at a time; does not affect the result.

    Returns:
        float64[K], one p-value per column.

    Raises:
        ValueError: ``flips`` is below 1.
    """
    if flips < 1:
        raise ValueError(f"{flips} flips; at least one is needed")
    d_UK = differences.sums_UK
    total_K = d_UK.sum(axis=0)
    # Summed in another order, a tie may fall short by rounding; it must count as a tie.
    observed_K = np.abs(total_K) - _TIE * np.abs(d_UK).sum(axis=0)
    exact = differences.num_users < 63 and 2**differences.num_users <= flips
    patterns = (
        _all_signs(differences.num_users)
        if exact
        else _random_signs(differences.num_users, flips, seed, block)
    )
    hits_K = np.zeros(d_UK.shape[1])
    for plus_BU in patterns:
        flipped_BK = 2.0 * (plus_BU @ d_UK) - total_K
        hits_K += (np.abs(flipped_BK) >= observed_K).sum(axis=0)
    return hits_K / 2**differences.num_users if exact else (1.0 + hits_K) / (1.0 + flips)


def _user_weights(users: int, resamples: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Yield how often each user is in each resample, float64[B, U], in blocks."""
    rng = np.random.default_rng(seed)
    for size in _blocks(users, resamples, block):
        # Drawing 32 bits and counting one resample at a time, in a core's cache, is 3 times faster.
        drawn_BU = rng.integers(users, size=(size, users), dtype=np.int32)
        weights_BU = np.empty((size, users))
        for weights_U, drawn_U in zip(weights_BU, drawn_BU, strict=True):
            weights_U[:] = np.bincount(drawn_U, minlength=users)
        yield weights_BU


def _random_signs(users: int, flips: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Yield random signs, 1.0 for plus and 0.0 for minus, float64[B, U]."""
    rng = np.random.default_rng(seed)
    words = -(-users // 64)
    for size in _blocks(users, flips, block):
        drawn = rng.integers(2**64 - 1, size=(size, words), dtype=np.uint64, endpoint=True)
        yield np.unpackbits(drawn.view(np.uint8), axis=1, count=users).astype(np.float64)


def _all_signs(users: int) -> Iterator[np.ndarray]:
    patterns = np.arange(2**users)[:, None] >> np.arange(users)
    yield (patterns & 1).astype(np.float64)


def _blocks(users: int, total: int, block: int) -> Iterator[int]:
    size = max(1, block // users)
    for start in range(0, total, size):
        yield min(size, total - start)
