"""Metrics and intervals, against scikit-learn, SciPy and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from mixmim_bench.metrics import METRICS, score
from mixmim_bench.stats import wilson


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    y, scores = rng.integers(0, 12, 300), rng.normal(size=(300, 12))
    labels = np.arange(12)
    assert score("top1", y, scores)["value"] == accuracy_score(y, scores.argmax(1))
    assert score("top5", y, scores)["value"] == top_k_accuracy_score(y, scores, k=5, labels=labels)


def test_of_equal_scores_the_first_class_wins():
    y, constant = np.arange(12) % 4, np.zeros((12, 4))
    assert score("top1", y, constant)["value"] == (constant.argmax(1) == y).mean() == 0.25
    rounded = np.random.default_rng(0).integers(0, 4, (500, 10))
    y = np.random.default_rng(1).integers(0, 10, 500)
    assert score("top1", y, rounded)["value"] == (rounded.argmax(1) == y).mean()
    best = np.argsort(-rounded, axis=1, kind="stable")[:, :5]
    assert score("top5", y, rounded)["value"] == (best == y[:, None]).any(1).mean()


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="diverged"):
        score("top1", np.array([0]), np.array([[np.nan, 0.0]]))


def test_a_class_that_was_never_seen_scores_nothing():
    assert score("top1", np.array([1]), np.array([[0.0, -np.inf]]))["value"] == 0.0


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_is_that_of_scipy(n, p):
    hits = round(n * p)
    low, high = wilson(hits, n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize(("p", "n"), [(0.98, 500), (0.9, 1500), (0.5, 200)])
def test_wilson_covers(p, n):
    hits = np.random.default_rng(0).binomial(n, p, 4000)
    covered = np.mean([low <= p <= high for low, high in (wilson(h, n) for h in hits)])
    assert 0.93 <= covered <= 0.97


def test_an_interval_needs_items():
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_one_for_the_right_order_and_zero_for_the_wrong_one(name):
    y = np.arange(7)
    right = np.eye(7)
    assert score(name, y, right)["value"] == 1.0
    assert score(name, y, -right)["value"] == 0.0


def test_the_interval_holds_the_value_also_at_the_ends():
    for n in range(1, 2000):
        assert wilson(n, n)[1] == 1.0 and wilson(0, n)[0] == 0.0
        for hits in {0, 1, n // 3, n - 1, n}:
            low, high = wilson(hits, n)
            assert 0.0 <= low <= hits / n <= high <= 1.0
