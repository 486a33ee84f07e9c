"""Shape a click log like MIND's: lengths of histories, candidates, clicks and popularity.

Published figures of MIND's large training part: histories have 32.9 articles in the mean, 19 in the
median, 110 at the 95th percentile and 801 at most; a fifth has over 50, and 2.2% are empty.
Impressions have 37.4 candidates in the mean, 24 in the median, 119 at the 95th percentile and 300
at most; 28% have two clicks or more, 1.52 in the mean (Wu et al., MIND, ACL 2020, and the files
themselves). A log-normal with these means and medians meets the rest within a few per cent.

The skew of popularity has not been published; :data:`POPULARITY_SKEW` is an assumption.
"""

from typing import Any

import numpy as np

HISTORY_MEAN = 32.9
"""Mean articles in a history, including empty histories."""
EMPTY_HISTORIES = 0.022
"""Share of empty histories."""
CANDIDATES_MEAN = 37.4
"""Mean candidates of an impression."""
MULTI_CLICK_SHARE = 0.28
"""Share of impressions with two clicks or more."""
POPULARITY_SKEW = 2.0
"""Standard deviation of the logarithm of popularity: the most popular hundredth of the articles has
37% of the showings, the most popular tenth 76%."""

_HISTORY_SPREAD = 1.05  # median 19 at mean 32.9
_MAX_HISTORY_FACTOR = 24
_CANDIDATES_SPREAD = 0.94  # median 24 at mean 37.4
_MAX_CANDIDATES_FACTOR = 8
_MORE_CLICKS = 0.543
"""Chance that the second click or a later one is the last: 1.5 clicks per impression."""

_MIND_SIZES = {
    "articles": 130_379,
    "users": 1_000_000,
    "train_impressions": 2_232_748,
    "dev_impressions": 376_471,
    "test_impressions": 2_370_727,
}
_SMALLEST = 200


def like_mind(scale: float = 1.0) -> dict[str, Any]:
    """Return settings of a world with the sizes of MIND's large parts.

    The articles are those of the three ``news.tsv`` together; the users are all of MIND's, of whom
    some are in no log (the large training part has 711,222). Bodies are as long as MIND's
    abstracts, since MIND has no bodies.

    Args:
        scale: Multiplies articles, users and impressions.

    Returns:
        Fields of :class:`shards.world.settings.WorldSettings` by name.
    """
    sizes = {name: max(_SMALLEST, round(size * scale)) for name, size in _MIND_SIZES.items()}
    return sizes | {
        "title_words": 11.52,
        "body_words": 43.0,
        "popularity_skew": POPULARITY_SKEW,
        "max_history": 801,
        "max_candidates": 300,
    }


def fill_lengths(
    rng: np.random.Generator,
    empty: np.ndarray,
    mean: float = HISTORY_MEAN,
    empty_share: float = EMPTY_HISTORIES,
    longest: int = 0,
) -> np.ndarray:
    """Draw the lengths of histories.

    Args:
        rng: Source of the draws.
        empty: bool[n], whether a history is empty.
        mean: Mean length, including empty histories.
        empty_share: Share of empty histories.
        longest: Longest length; 0: 24 times the mean.

    Returns:
        int64[n].
    """
    nonempty = max(1.0 - empty_share, 1e-9)
    highest = longest or _MAX_HISTORY_FACTOR * mean
    lengths = lengths_with_mean(rng, len(empty), mean / nonempty, _HISTORY_SPREAD, 1, highest)
    lengths[empty | (mean == 0)] = 0
    return lengths


def candidate_counts(
    rng: np.random.Generator, count: int, mean: float = CANDIDATES_MEAN, most: int = 0
) -> np.ndarray:
    """Draw the numbers of candidates in impressions, each at least two.

    Args:
        rng: Source of the draws.
        count: Number of impressions.
        mean: Mean number of candidates.
        most: Largest number; 0: 8 times the mean.

    Returns:
        int64[count].
    """
    highest = most or _MAX_CANDIDATES_FACTOR * mean
    return lengths_with_mean(rng, count, mean, _CANDIDATES_SPREAD, 2, highest)


def click_counts(
    rng: np.random.Generator, candidates: np.ndarray, multi_click_share: float = MULTI_CLICK_SHARE
) -> np.ndarray:
    """Draw the number of clicked candidates in each impression: at least one, but not all.

    Args:
        rng: Source of the draws.
        candidates: int64[n], each at least two.
        multi_click_share: Share of impressions with two clicks or more, if candidates suffice.

    Returns:
        int64[n].
    """
    many = rng.random(len(candidates)) < multi_click_share
    clicks = 1 + many * rng.geometric(_MORE_CLICKS, len(candidates))
    return np.minimum(clicks, candidates - 1)


def lengths_with_mean(
    rng: np.random.Generator, count: int, mean: float, spread: float, lowest: int, highest: float
) -> np.ndarray:
    """Draw whole numbers with a long tail: log-normal, rounded, cut at both ends.

    Args:
        rng: Source of the draws.
        count: Number of draws.
        mean: Mean before the cuts.
        spread: Standard deviation of the logarithm.
        lowest: Smallest value.
        highest: Largest value.

    Returns:
        int64[count].
    """
    draws = np.exp(np.log(max(mean, 1e-9)) - spread**2 / 2 + spread * rng.standard_normal(count))
    return np.round(draws).astype(np.int64).clip(lowest, max(lowest, int(highest)))
