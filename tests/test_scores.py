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


def test_a_tie_is_no_hit():
    constant = np.zeros((10, 4))
    assert score("top1", np.arange(10) % 4, constant)["value"] == 0.0
    assert score("top5", np.arange(10) % 4, constant)["value"] == 1.0


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


def test_every_metric_says_right_and_wrong():
    y, scores = np.array([0, 1]), np.eye(7)[[0, 0]] + np.linspace(0, 0.1, 7)
    for name in METRICS:
        assert score(name, y, scores)["n"] == 2
