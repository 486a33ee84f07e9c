"""MIND's metrics: against scikit-learn, a slow loop over impressions, and cases worked by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from shards.errors import DataError
from trainer.evaluate.metrics import METRIC_NAMES, ranking_metrics, ranks_without_ties


def slow_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """One impression, candidate by candidate, the way the published procedure describes it."""
    best_first = list(np.argsort(scores, kind="stable"))[::-1]
    sorted_labels = [int(labels[i]) for i in best_first]

    def dcg(values: list[int], k: int) -> float:
        return sum((2**v - 1) / math.log2(place + 2) for place, v in enumerate(values[:k]))

    clicks = sum(sorted_labels)
    ideal = sorted(sorted_labels, reverse=True)
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "mrr": sum(v / (place + 1) for place, v in enumerate(sorted_labels)) / clicks,
        "ndcg5": dcg(sorted_labels, 5) / dcg(ideal, 5),
        "ndcg10": dcg(sorted_labels, 10) / dcg(ideal, 10),
    }


def ragged(impressions: list[tuple[list[float], list[int]]]):
    scores = np.array([s for one, _ in impressions for s in one], dtype=np.float64)
    labels = np.array([y for _, one in impressions for y in one], dtype=np.uint8)
    offsets = np.cumsum([0, *(len(one) for one, _ in impressions)])
    return scores, labels, offsets


def test_hand_worked_single_click_on_second_rank():
    result = ranking_metrics(*ragged([([0.1, 0.9, 0.5], [0, 0, 1])]))
    assert result.auc == pytest.approx(0.5)
    assert result.mrr == pytest.approx(1 / 2)
    assert result.ndcg5 == pytest.approx(1 / math.log2(3))
    assert result.ndcg10 == pytest.approx(1 / math.log2(3))


def test_hand_worked_mrr_counts_every_click():
    # Ranks of the clicked ones: 1 and 4. (1 + 1/4) / 2, not the reciprocal of the first hit alone.
    result = ranking_metrics(*ragged([([4.0, 3.0, 2.0, 1.0], [1, 0, 0, 1])]))
    assert result.mrr == pytest.approx((1 + 1 / 4) / 2)
    assert result.auc == pytest.approx(2 / 4)
    ideal = 1 + 1 / math.log2(3)
    assert result.ndcg5 == pytest.approx((1 + 1 / math.log2(5)) / ideal)


def test_click_beyond_the_cut_gives_no_gain():
    scores = list(range(12, 0, -1))
    labels = [0] * 12
    labels[6] = 1  # rank 7: inside 10, outside 5
    result = ranking_metrics(*ragged([([float(s) for s in scores], labels)]))
    assert result.ndcg5 == 0.0
    assert result.ndcg10 == pytest.approx(1 / math.log2(8))


def test_ties_count_half_in_auc_and_the_later_candidate_ranks_first():
    result = ranking_metrics(*ragged([([1.0, 1.0], [1, 0])]))
    assert result.auc == 0.5
    assert result.mrr == 0.5  # the clicked one came first in the file, so it ranks second
    later = ranking_metrics(*ragged([([1.0, 1.0], [0, 1])]))
    assert later.auc == 0.5
    assert later.mrr == 1.0


def test_mean_is_over_impressions_not_candidates():
    perfect = ([2.0, 1.0], [1, 0])
    worst = ([float(i) for i in range(20)], [1] + [0] * 19)
    result = ranking_metrics(*ragged([perfect, worst]))
    assert result.auc == pytest.approx(0.5)
    np.testing.assert_allclose(result.auc_n, [1.0, 0.0])


def test_one_class_and_empty_impressions_are_skipped_and_counted():
    good = ([2.0, 1.0], [1, 0])
    result = ranking_metrics(*ragged([([1.0], [1]), good, ([1.0, 2.0], [0, 0]), ([], [])]))
    assert (result.num_impressions, result.num_skipped) == (1, 3)
    assert result.auc == 1.0
    assert list(np.isnan(result.ndcg5_n)) == [True, False, True, True]


def test_no_countable_impression_gives_nan_not_zero():
    result = ranking_metrics(*ragged([([1.0], [1])]))
    assert all(math.isnan(value) for value in result.to_dict().values())
    empty = ranking_metrics(np.zeros(0), np.zeros(0), np.zeros(1, dtype=np.int64))
    assert empty.num_impressions == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_the_slow_loop(seed: int, ties: bool):
    rng = np.random.default_rng(seed)
    impressions = []
    for _ in range(rng.integers(1, 12)):
        size = int(rng.integers(2, 40))
        scores = rng.integers(0, 4, size).astype(float) if ties else rng.normal(size=size)
        labels = np.zeros(size, dtype=int)
        labels[rng.choice(size, rng.integers(1, size), replace=False)] = 1
        impressions.append((list(scores), list(labels)))
    result = ranking_metrics(*ragged(impressions))
    expected = [slow_metrics(np.array(s), np.array(y)) for s, y in impressions]
    for name in METRIC_NAMES:
        np.testing.assert_allclose(
            getattr(result, f"{name}_n"), [e[name] for e in expected], rtol=1e-12, atol=1e-12
        )
        assert getattr(result, name) == pytest.approx(np.mean([e[name] for e in expected]))


def test_parts_of_any_size_give_the_same(monkeypatch):
    rng = np.random.default_rng(8)
    impressions = []
    for size in [*rng.integers(1, 60, 40), 0, 0, 5]:
        labels = (rng.random(size) < 0.4).astype(int)
        impressions.append((list(rng.integers(0, 5, size).astype(float)), list(labels)))
    expected = ranking_metrics(*ragged(impressions))
    for comparisons in (1, 50, 10**9):
        monkeypatch.setattr("trainer.evaluate.metrics._COMPARISONS", comparisons)
        found = ranking_metrics(*ragged(impressions))
        for name in METRIC_NAMES:
            np.testing.assert_array_equal(
                getattr(found, f"{name}_n"), getattr(expected, f"{name}_n")
            )


def test_ranks_are_a_permutation_and_keep_the_metrics_of_the_scores():
    rng = np.random.default_rng(3)
    scores, labels, offsets = ragged(
        [(list(rng.integers(0, 3, 30).astype(float)), [1, *([0] * 28), 1]) for _ in range(5)]
    )
    ranks = ranks_without_ties(scores, offsets)
    for start, stop in itertools.pairwise(offsets):
        assert sorted(ranks[start:stop]) == list(range(1, 31))
    by_score = ranking_metrics(scores, labels, offsets)
    by_rank = ranking_metrics(1.0 / ranks, labels, offsets)
    for name in ("mrr", "ndcg5", "ndcg10"):
        np.testing.assert_array_equal(getattr(by_score, f"{name}_n"), getattr(by_rank, f"{name}_n"))


def test_subset_averages_only_the_chosen():
    result = ranking_metrics(*ragged([([2.0, 1.0], [1, 0]), ([1.0, 2.0], [1, 0]), ([1.0], [1])]))
    part = result.subset(np.array([False, True, True]))
    assert (part.auc, part.num_impressions, part.num_skipped) == (0.0, 1, 1)


@pytest.mark.parametrize(
    ("scores", "labels", "offsets", "message"),
    [
        ([1.0, float("nan"), 2.0], [1, 0, 1], [0, 1, 3], "not finite, the first in impression 1"),
        (
            [1.0, 3.0, float("inf")],
            [1, 0, 1],
            [0, 2, 3],
            "1 scores are not finite, .* impression 1",
        ),
        ([float("-inf"), 2.0], [1, 0], [0, 2], "not finite, the first in impression 0"),
        ([1.0, 2.0], [1], [0, 2], "shape"),
        ([1.0, 2.0], [1, 2], [0, 2], "labels must be"),
        ([1.0, 2.0], [1, 0], [0, 1], "offsets must run"),
        ([1.0, 2.0], [1, 0], [0, 3, 2], "decrease"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(scores, labels, offsets, message):
    with pytest.raises(DataError, match=message):
        ranking_metrics(np.array(scores), np.array(labels), np.array(offsets))
