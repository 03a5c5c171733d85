"""95 % intervals of scores that are fractions.

A score is a mean over items or an average over classes. Its interval is Wilson's for the number of items that
would have its variance, with Student's quantile if the variance is estimated. Small classes make these
estimates poor (a class without errors has no variance), so the variance of each class is shrunk towards that
of the others. tests/test_scores.py simulates the coverage.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
PRIOR_ITEMS = 4.0  # by how many items the rate of a class is drawn towards that of the others
PRIOR_POSITIVES = 2.0  # the same for the variance of a ranking
RESAMPLES = 1_000
DRAWN_AT_ONCE = 2**22


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (1927), 95 % by default; raises ValueError at n = 0."""
    if n <= 0:
        raise ValueError("an interval needs at least one item")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at the ends the bound is the end itself, which rounding would miss
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


@dataclass(frozen=True)
class Spread:
    """The sampling distribution of a score over items of the same kind.

    `centre` is the score shrunk slightly towards 1/2, consistent with the variance; `df` are the degrees of
    freedom of the variance, `bias` is the expected excess of the score.
    """

    variance: float
    df: float
    centre: float
    bias: float = 0.0

    def interval(self, value: float) -> tuple[float, float]:
        """Return low and high of a score."""
        from scipy.stats import t

        items = self.centre * (1 - self.centre) / self.variance
        expected = min(max(value - self.bias, 0.0), 1.0)
        low, high = wilson(expected * items, items, float(t.ppf(0.975, self.df)))
        return max(min(low, value), 0.0), min(max(high, value), 1.0)

    def with_draws(self, values: np.ndarray) -> "Spread":
        """Add the variance of the values (S,) over several random draws of training images."""
        if len(values) < 2:
            return self
        of_draws = float(values.var(ddof=1)) / len(values)
        variance, df = added(self.variance, self.df, of_draws, len(values) - 1)
        return Spread(variance, df, self.centre, self.bias)


def added(a: float, df_a: float, b: float, df_b: float) -> tuple[float, float]:
    """Add two independent estimates of variance, with Satterthwaite's degrees of freedom (1946)."""
    if a + b == 0.0:
        return 0.0, df_a
    return a + b, (a + b) ** 2 / (a * a / df_a + b * b / df_b)


def spread_of_mean(hits: np.ndarray) -> Spread:
    """Spread of a plain accuracy; hits (S, n): 1 if an item was right, after each of S draws."""
    n = hits.shape[1]
    of_items = hits.mean(0)
    centre = (of_items.sum() + 1) / (n + 2)
    variance = centre * (1 - centre) / n * _agreement(of_items, len(hits))
    return Spread(float(variance), math.inf if len(hits) == 1 else max(n - 1, 1), float(centre))


def _agreement(of_items: np.ndarray, draws: int) -> float:
    """Compare the variance of hits averaged over draws (n,) with that of plain ones: 1 without draws."""
    p = float(of_items.mean())
    return max(float(of_items.var()) / (p * (1 - p)), 1 / draws) if 0.0 < p < 1.0 else 1.0


def spread_of_class_means(hits: np.ndarray, y: np.ndarray) -> tuple[Spread, int]:
    """Spread of the mean over classes of their accuracies, and the number of items in the smallest class.

    hits: (S, n), as in spread_of_mean; y (n,). The rate of a class is shrunk by PRIOR_ITEMS towards the mean
    of all, which is itself shrunk by one class towards 1/2, and has the variance of such a rate.
    """
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    of_items = hits.mean(0)
    right = np.bincount(codes, of_items)
    K = len(counts)
    mean = (0.5 + ((right + 1) / (counts + 2)).sum()) / (1 + K)
    rates = (right + PRIOR_ITEMS * mean) / (counts + PRIOR_ITEMS)
    agreement = (
        np.array([_agreement(of_items[codes == k], len(hits)) for k in range(K)]) if len(hits) > 1 else 1.0
    )
    variances = rates * (1 - rates) / counts * agreement
    df = variances.sum() ** 2 / (variances**2 / (counts + PRIOR_ITEMS - 1)).sum()
    spread = Spread(float(variances.sum()) / K**2, float(df), float(rates.mean()))
    return spread, int(counts.min())


def spread_over_classes(
    reduce: Callable[[np.ndarray], np.ndarray],
    n: int,
    positives: np.ndarray,
    negatives: np.ndarray,
    prior: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
) -> Spread:
    """Spread of the mean over classes of a metric that is no mean of items, by a bootstrap over n items.

    Args:
        reduce: maps item counts (r, n) to the value of each class (r, K).
        n: the number of items.
        positives: (K,) items of each class.
        negatives: (K,) items not of each class.
        prior: returns the expected variance of a class from its value and these two; the variance is shrunk
            towards it by PRIOR_POSITIVES.
        resamples: their number.

    Average precision is biased upwards on few items: the bootstrap estimates the bias, and the interval is
    shifted by it.
    """
    values = reduce(np.ones((1, n)))[0]
    drawn = np.concatenate([reduce(weights) for weights in resample(n, resamples)])
    drawn = drawn[~np.isnan(drawn).all(1)]  # without positives of any class a resample says nothing
    of_classes = np.nanvar(drawn, axis=0, ddof=1)
    means = np.nanmean(drawn, axis=1)
    K, sizes = len(values), np.minimum(positives, negatives)
    mean = (0.5 + values.sum()) / (1 + K)
    expected = prior(
        (sizes * values + PRIOR_POSITIVES * mean) / (sizes + PRIOR_POSITIVES), positives, negatives
    )
    smoothed = (sizes * of_classes + PRIOR_POSITIVES * expected) / (sizes + PRIOR_POSITIVES)
    variance = float(np.nanvar(means, ddof=1) + (smoothed - of_classes).sum() / K**2)
    df = smoothed.sum() ** 2 / (smoothed**2 / (sizes + PRIOR_POSITIVES - 1)).sum()
    centre = float(((sizes * values + mean) / (sizes + 1)).mean())
    return Spread(variance, float(df), centre, float(np.nanmean(means) - values.mean()))


def spread_of_ratio(parts: np.ndarray, wholes: np.ndarray) -> Spread:
    """Spread of the ratio of two sums over items, sum(parts) / sum(wholes), both (n,), by linearisation."""
    n, ratio = len(parts), parts.sum() / wholes.sum()
    residuals = (parts - ratio * wholes) / wholes.mean()
    centre = (n * ratio + 0.5) / (n + 1)
    # one item that is half right, so that no score without an error seems certain
    variance = (float((residuals**2).sum()) + centre * (1 - centre)) / (n * max(n - 1, 1))
    return Spread(variance, max(n - 1, 1), centre)


def resample(n: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw n items with replacement, `resamples` times; yields the counts (r, n) in parts."""
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        drawn = rng.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def binomial_variance(p: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Variance of an average precision as if it were a proportion of the positives (Boyd et al., 2013)."""
    del negatives
    return p * (1 - p) / positives


def hanley_mcneil_variance(auc: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Variance of an area under the ROC curve with exponential scores (Hanley and McNeil, 1982)."""
    both = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    total = auc * (1 - auc) + (positives - 1) * both[0] + (negatives - 1) * both[1]
    return np.maximum(total, 1e-12) / (positives * negatives)
