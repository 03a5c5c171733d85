"""Metrics and intervals, against scikit-learn, SciPy and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    precision_recall_curve,
    roc_auc_score,
    top_k_accuracy_score,
)

from mixmim_bench.scoring import metrics
from mixmim_bench.scoring.intervals import wilson
from mixmim_bench.scoring.metrics import METRICS, score, value
from mixmim_bench.scoring.predictions import ClassScores

# the others are counted image by image: tests/test_dense_scores.py
OF_CLASSES = sorted(name for name in METRICS if set(METRICS[name].kinds) & {"classification", "multilabel"})


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


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_metric_is_one_for_the_right_order_and_little_for_the_wrong_one(name):
    y = np.arange(21) % 7
    right = np.eye(7)[y]
    assert score(name, y, right)["value"] == pytest.approx(1.0)
    assert value(name, y, -right) <= 1 / 7 + 1e-9  # what the average precision of the worst order is


# -- more metrics -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.booleans())
def test_rankings_are_those_of_scikit_learn(seed, classes, rounded):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (60, classes))
    y[:2] = [[0] * classes, [1] * classes]
    scores = rng.normal(size=y.shape) + y
    if rounded:
        scores = scores.round()  # ties
    expected = average_precision_score(y, scores, average="macro")
    assert value("mean_ap", y, scores) == pytest.approx(expected)
    assert value("roc_auc", y, scores) == pytest.approx(roc_auc_score(y, scores))
    eleven = [
        np.mean([precision[recall >= level].max() for level in np.linspace(0, 1, 11).round(1)])
        for precision, recall, _ in (precision_recall_curve(a, b) for a, b in zip(y.T, scores.T, strict=True))
    ]
    # scikit-learn closes its curve with precision 1 at recall 0, where nothing is found
    curve = [c for c in zip(y.T, scores.T, strict=True)]
    best_at_0 = [np.max(precision_recall_curve(a, b)[0][:-1]) for a, b in curve]
    eleven = [e + (b - 1) / 11 for e, b in zip(eleven, best_at_0, strict=True)]
    assert value("mean_ap_11", y, scores) == pytest.approx(np.mean(eleven))


@given(st.integers(0, 10_000))
def test_the_mean_over_classes_is_scikit_learns_balanced_accuracy(seed):
    rng = np.random.default_rng(seed)
    y, scores = rng.choice(5, 80, p=[0.6, 0.2, 0.1, 0.05, 0.05]), rng.normal(size=(80, 5))
    y[:5] = np.arange(5)
    assert value("mean_per_class", y, scores) == pytest.approx(balanced_accuracy_score(y, scores.argmax(1)))


def test_one_label_an_item_is_ranked_one_against_the_rest():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 4, 200), rng.random((200, 4))
    scores /= scores.sum(1, keepdims=True)
    assert value("roc_auc", y, scores) == pytest.approx(roc_auc_score(y, scores, multi_class="ovr"))
    two, of_two = y % 2, scores[:, :2]
    assert value("roc_auc", two, of_two) == pytest.approx(roc_auc_score(two, of_two[:, 1] - of_two[:, 0]))


def test_objects_that_are_difficult_count_neither_way():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 2, (100, 3)), rng.normal(size=(100, 3))
    with_some = np.vstack([y, np.full((20, 3), -1)])
    more = np.vstack([scores, rng.normal(size=(20, 3)) + 5])
    for name in ("mean_ap", "mean_ap_11", "roc_auc"):
        assert value(name, with_some, more) == value(name, y, scores)
    with pytest.raises(ValueError, match="no class has both"):
        value("mean_ap", np.ones((5, 2), dtype=int), np.ones((5, 2)))


@given(st.integers(0, 1000), st.sampled_from(OF_CLASSES))
@settings(deadline=None)
def test_weights_are_as_good_as_copies(seed, name):
    """The value with weights is that of a set in which each item stands so often."""
    rng = np.random.default_rng(seed)
    y, scores = rng.integers(0, 4, 40), rng.normal(size=(40, 4)).round(1)
    y[:4] = np.arange(4)
    counts = rng.integers(0, 3, 40)
    counts[:4] = 1
    metric = METRICS[name]
    weighted = metric.reduce(metric.items(y, scores), counts[None].astype(float))[0]
    rows = np.repeat(np.arange(40), counts)
    assert weighted == pytest.approx(value(name, y[rows], scores[rows]))


@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_is_kept_gives_the_score_again(name):
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 8, 100), rng.normal(size=(100, 8)).astype(np.float32)
    arrays = ClassScores(np.arange(100).astype(str), y, scores).kept([name])
    again = METRICS[name].reduce(ClassScores.restore(name, arrays).draws[0], np.ones((1, 100)))[0]
    assert again == pytest.approx(value(name, y, scores))


def covers(draw, name, truth, trials, seed=0):
    """How often the interval of a metric holds the truth."""
    rng = np.random.default_rng(seed)
    found = [score(name, *draw(rng)) for _ in range(trials)]
    return np.mean([s["low"] <= truth <= s["high"] for s in found])


def per_class(counts, rates):
    """Draw labels and scores of classes with these numbers of items and accuracies."""
    y = np.repeat(np.arange(len(counts)), counts)

    def draw(rng):
        hits = rng.random(len(y)) < np.asarray(rates)[y]
        return y, np.eye(len(counts))[np.where(hits, y, (y + 1) % len(counts))]

    return draw


TEN_UNEQUAL = np.geomspace(400, 8, 10).astype(int)


@pytest.mark.parametrize(
    ("counts", "rates"),
    [
        ([160, 120, 40, 40, 40], [0.95, 0.9, 0.8, 0.7, 0.6]),
        ([50] * 10, [0.97] * 10),
        ([2000, 10], [0.99, 0.95]),  # 37 % of intervals covered when only the resamples' spread counted
        (TEN_UNEQUAL, np.linspace(0.98, 0.8, 10)),
        (TEN_UNEQUAL, [0.9] * 10),
        ([909, 91], [0.99, 0.99]),
        ([20] * 100, [0.95] * 100),
        ([10] * 50, np.linspace(0.5, 1.0, 50)),
    ],
    ids=["equal", "near one", "2000 and 10", "ten unequal", "ten unequal alike", "909 and 91", "100", "50"],
)
def test_the_interval_of_the_mean_over_classes_covers(counts, rates):
    assert 0.93 <= covers(per_class(counts, rates), "mean_per_class", np.mean(rates), 1500) <= 0.99


@pytest.mark.parametrize("smallest", [1, 2, 5])
def test_a_class_of_a_few_items_makes_the_interval_wide_and_is_told(smallest):
    draw = per_class([200, smallest], [0.9, 0.8])
    assert covers(draw, "mean_per_class", 0.85, 1500) >= 0.93
    found = score("mean_per_class", *draw(np.random.default_rng(0)))
    assert found["smallest_class"] == smallest and found["interval"] == "wilson of smoothed class rates"


def binormal(n, prevalence, shift, classes):
    """Draw labels and scores of which the positives are higher by `shift` deviations."""

    def draw(rng):
        y = (rng.random((n, classes)) < prevalence).astype(int)
        y[rng.integers(n), y.sum(0) == 0] = 1
        return y, shift * y + rng.normal(size=y.shape)

    return draw


def true_value(name, prevalence, shift):
    """What a ranking metric would be on infinitely many items."""
    if name == "roc_auc":
        return norm.cdf(shift / np.sqrt(2))
    at = np.linspace(-8, 8 + shift, 20001)
    positive, negative = prevalence * norm.sf(at - shift), (1 - prevalence) * norm.sf(at)
    return np.trapezoid(positive / (positive + negative) * norm.pdf(at - shift), at)


@pytest.mark.parametrize(
    ("name", "n", "prevalence", "shift", "classes"),
    [
        ("roc_auc", 250, 0.4, 1.0, 1),
        ("roc_auc", 300, 0.03, 1.5, 1),
        ("roc_auc", 300, 0.03, 3.0, 1),
        ("roc_auc", 500, 0.02, 3.0, 3),
        ("mean_ap", 300, 0.03, 1.5, 1),
        ("mean_ap", 300, 0.1, 1.5, 3),
        ("mean_ap", 1000, 0.01, 3.0, 1),
    ],
)
def test_the_interval_of_a_ranking_covers(name, n, prevalence, shift, classes):
    truth = true_value(name, prevalence, shift)
    found = covers(binormal(n, prevalence, shift, classes), name, truth, 200)
    assert found >= 0.9  # of 200: 0.93 and two standard errors of it


def test_the_smallest_number_of_positives_is_told():
    y, scores = binormal(300, 0.05, 1.0, 3)(np.random.default_rng(0))
    assert score("mean_ap", y, scores)["smallest_class"] == y.sum(0).min()


def test_the_interval_over_draws_covers_draws_and_items():
    """An accuracy that differs between draws of the training set, on test sets that differ too."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        hardness = rng.normal(size=300)
        skill = 1.0 + 0.15 * rng.normal(size=(5, 1))
        hits = skill + 0.3 * rng.normal(size=(5, 300)) > hardness
        found = metrics.score_items("top1", [[each] for each in hits])
        assert found["interval"] == "wilson over draws"
        covered.append(found["low"] <= norm.cdf(1.0 / np.sqrt(1 + 0.15**2 + 0.3**2)) <= found["high"])
    assert 0.93 <= np.mean(covered) <= 0.99


@given(st.integers(0, 1000), st.sampled_from(OF_CLASSES), st.integers(2, 5))
@settings(deadline=None)
def test_the_order_of_the_items_changes_nothing(seed, name, classes):
    """Also where a class was never learnt, and all its scores are -inf."""
    rng = np.random.default_rng(seed)
    y, scores = rng.integers(0, classes, 60), rng.normal(size=(60, classes)).round(1)
    y[:classes] = np.arange(classes)
    scores[:, rng.integers(classes)] = -np.inf
    by_label = np.argsort(y, kind="stable")
    expected = value(name, y, scores)
    for order in (by_label, by_label[::-1], rng.permutation(60)):
        assert value(name, y[order], scores[order]) == pytest.approx(expected)


def test_a_class_that_was_never_learnt_ranks_as_chance():
    y = np.arange(60) % 3
    scores = np.eye(3)[y]
    scores[:, 2] = -np.inf
    assert value("roc_auc", y, scores) == pytest.approx((1 + 1 + 0.5) / 3)
    assert value("mean_ap", y, scores) == pytest.approx((1 + 1 + 1 / 3) / 3)


def test_a_guess_knows_how_frequent_the_classes_are():
    y, learnt_from = np.array([0, 1, 1, 2, 2, 2]), np.array([1, 1, 1, 0, 2])
    assert metrics.guess("top1", y, learnt_from, 4) == pytest.approx(2 / 6)
    assert metrics.guess("mean_per_class", y, learnt_from, 4) == pytest.approx(1 / 3)
    assert metrics.guess("top5", y, learnt_from, 12) == 1.0
    assert metrics.guess("roc_auc", y, learnt_from, 4) == 0.5
    several = np.array([[1, 0], [0, 0], [1, -1], [0, 1]])
    assert metrics.guess("mean_ap", several, several, 2) == pytest.approx((2 / 4 + 1 / 3) / 2)


def test_the_interval_holds_the_value_also_at_the_ends():
    for n in range(1, 2000):
        assert wilson(n, n)[1] == 1.0 and wilson(0, n)[0] == 0.0
        for hits in {0, 1, n // 3, n - 1, n}:
            low, high = wilson(hits, n)
            assert 0.0 <= low <= hits / n <= high <= 1.0


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("classes", [2, 7])
def test_the_interval_holds_the_value_of_perfect_and_useless_scores(name, classes):
    y = np.arange(3 * classes) % classes
    for scores in (np.eye(classes)[y], -np.eye(classes)[y], np.zeros((len(y), classes))):
        for found in (score(name, y, scores), metrics.score_draws(name, y, [scores, scores])):
            assert 0.0 <= found["low"] <= found["value"] <= found["high"] <= 1.0


@pytest.mark.parametrize("name", ["top1", "mean_per_class"])
def test_draws_that_are_each_right_on_another_image(name):
    """All images are right equally often, and that is not certain."""
    y = np.array([0, 1])
    found = metrics.score_draws(name, y, [np.eye(2)[[0, 0]], np.eye(2)[[1, 1]]])
    assert found["value"] == 0.5 and found["low"] < 0.3 and found["high"] > 0.7
