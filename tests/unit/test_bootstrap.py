"""Intervals and the paired test over users: against loops, against SciPy, and on populations whose
truth is known."""

import itertools

import numpy as np
import pytest
import scipy.stats

from trainer.evaluate.bootstrap import (
    Interval,
    UserSums,
    intervals,
    resampled_means,
    sign_flip_test,
)


def clustered(rng: np.random.Generator, users: int, most: int, effect: float = 0.3):
    """(user of each impression, values): users of unlike activity and unlike taste."""
    counts = rng.integers(1, most + 1, size=users)
    user = rng.permutation(np.repeat(np.arange(users) * 7 + 3, counts))
    taste = dict(zip(np.arange(users) * 7 + 3, rng.normal(0, effect, users), strict=True))
    return user, 0.6 + np.array([taste[u] for u in user]) + rng.normal(0, 0.1, len(user))


def test_sums_by_user_keep_the_mean_over_impressions():
    user, values = clustered(np.random.default_rng(0), 30, 9)
    both = np.stack([values, values**2], axis=1)
    sums = UserSums.of(user, both)
    assert sums.num_users == 30
    np.testing.assert_allclose(sums.means(), both.mean(axis=0))
    for place, name in enumerate(np.unique(user)):
        assert sums.counts_U[place] == (user == name).sum()
        np.testing.assert_allclose(sums.sums_UK[place], both[user == name].sum(axis=0))
    with pytest.raises(ValueError, match="0 users"):
        UserSums.of(user[:0], both[:0])
    with pytest.raises(ValueError, match="1 users for 2"):
        UserSums.of(user[:1], both[:2])


@pytest.mark.parametrize("block", [1, 45, 10**6])
def test_resamples_are_those_of_a_loop_over_users(block: int):
    user, values = clustered(np.random.default_rng(1), 15, 6)
    names = np.unique(user)
    drawn = np.random.default_rng(5).integers(15, size=(20, 15), dtype=np.int32)
    expected = [
        [np.concatenate([column[user == names[u]] for u in one]).mean() for one in drawn]
        for column in (values, -values)
    ]
    sums = UserSums.of(user, np.stack([values, -values], axis=1))
    found = resampled_means(sums, 20, seed=5, block=block)
    np.testing.assert_allclose(found, np.transpose(expected))
    with pytest.raises(ValueError, match="0 resamples"):
        resampled_means(sums, 0)


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(2)
    values = rng.beta(2, 1, size=300)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    found = intervals(resampled_means(UserSums.of(np.arange(300), values[:, None]), 20_000))[0]
    width = reference.high - reference.low
    assert found == pytest.approx(tuple(reference), abs=0.03 * width)

    # Users with several impressions: SciPy is given sums and counts and draws them together.
    user, values = clustered(rng, 80, 12)
    sums = UserSums.of(user, values[:, None])
    reference = scipy.stats.bootstrap(
        (sums.sums_UK[:, 0], sums.counts_U),
        lambda s, n, axis=-1: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    found = intervals(resampled_means(sums, 20_000))[0]
    width = reference.high - reference.low
    assert found == pytest.approx(tuple(reference), abs=0.03 * width)
    # Treating impressions as independent would claim to know the mean far better.
    naive = intervals(resampled_means(UserSums.of(np.arange(len(user)), values[:, None]), 2000))[0]
    assert naive.high - naive.low < 0.6 * width


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = naive = 0
    for _ in range(400):
        user, values = clustered(rng, 60, 8)
        for over in ("user", "impression"):
            who = user if over == "user" else np.arange(len(user))
            draws = resampled_means(
                UserSums.of(who, values[:, None]), 300, seed=int(rng.integers(99))
            )
            low, high = intervals(draws)[0]
            hit = low <= 0.6 <= high
            covered += hit and over == "user"
            naive += hit and over == "impression"
    assert 0.91 <= covered / 400 <= 0.98
    assert naive / 400 < 0.8


def test_level_of_confidence_is_an_argument():
    draws = np.arange(1001.0)[:, None]
    assert intervals(draws, 0.9)[0] == pytest.approx((50.0, 950.0))
    assert intervals(draws)[0] == pytest.approx((25.0, 975.0))
    assert Interval(-0.00123, 0.5).text(3, sign=True) == "[-0.001, +0.500]"


def test_few_users_give_the_exact_p_value_of_scipy():
    rng = np.random.default_rng(4)
    first, second = rng.normal(0.3, 1, (2, 10, 3))
    reference = scipy.stats.permutation_test(
        (first, second),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    found = sign_flip_test(UserSums(np.ones(10), first - second), 1024)
    np.testing.assert_allclose(found, reference)
    # Forty of 64 patterns reach 0.5, some of them only but for rounding.
    tenths = np.array([-1, 4, 1, -5, 3, 3])
    signs = np.array(list(itertools.product((-1, 1), repeat=6)))
    assert (np.abs(signs @ tenths) >= abs(tenths.sum())).mean() == 0.625
    assert sign_flip_test(UserSums(np.ones(6), tenths[:, None] / 10), 64) == 0.625
    # By hand: of eight patterns only the two where all signs agree reach 0.6.
    assert sign_flip_test(UserSums(np.ones(3), np.array([[0.1], [0.2], [0.3]])), 8) == 0.25


def test_many_users_agree_with_scipy_and_with_the_t_test():
    rng = np.random.default_rng(5)
    first, second = rng.normal([0.0, 0.1, 0.3], 1, (200, 3)), rng.normal(0, 1, (200, 3))
    found = sign_flip_test(UserSums(np.ones(200), first - second), 20_000)
    np.testing.assert_allclose(found, scipy.stats.ttest_rel(first, second).pvalue, atol=0.012)
    reference = scipy.stats.permutation_test(
        (first[:, 1], second[:, 1]),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=rng,
    ).pvalue
    assert found[1] == pytest.approx(reference, abs=0.012)


def test_the_test_rejects_as_often_as_it_may_and_finds_what_is_there():
    rng = np.random.default_rng(6)
    rejected = {0.0: 0, 0.25: 0}
    for shift in rejected:
        for _ in range(400):
            # Skewed, and a few users with most of the impressions: no normal distribution here.
            counts = 1 + rng.geometric(0.2, size=50)
            means = rng.exponential(1, 50) * rng.choice([-1, 1], 50) * 0.3 + shift
            differences = UserSums(counts.astype(float), (counts * means)[:, None])
            p = sign_flip_test(differences, 399, seed=int(rng.integers(10**6)))[0]
            rejected[shift] += p <= 0.05
    assert 0.025 <= rejected[0.0] / 400 <= 0.075
    assert rejected[0.25] / 400 > 0.9


def test_p_is_never_zero_and_equal_models_are_equal():
    users = np.ones(100)
    sums = UserSums(users, np.stack([np.ones(100), np.zeros(100)], axis=1))
    assert sign_flip_test(sums, 999).tolist() == [1 / 1000, 1.0]
    with pytest.raises(ValueError, match="0 flips"):
        sign_flip_test(sums, 0)
    np.testing.assert_array_equal(sign_flip_test(sums, 50, block=100), sign_flip_test(sums, 50))
