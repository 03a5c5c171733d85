"""Intervals for scores, and paired tests of their differences."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution
Z80 = 0.8416212335729143  # the 80 % point


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (1927), 95 % by default; raises ValueError at n = 0."""
    if n <= 0:
        raise ValueError("an interval needs at least one item")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at the ends the bound is the end itself, which rounding would miss
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


RESAMPLES = 10_000  # of what is cheap to reduce
FEW_RESAMPLES = 1_000  # of what is reduced anew from all items
DRAWN_AT_ONCE = 2**22


def resample(n: int, resamples: int = FEW_RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw n items with replacement, `resamples` times: how often each was drawn, (r, n), part by part."""
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        r = min(at_once, resamples - start)
        drawn = rng.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def bootstrap(value: float, reduce: Callable[[np.ndarray], np.ndarray], n: int) -> tuple[int, float, float]:
    """Return the number of resamples and a 95 % interval of a fraction that is reduced from n items.

    The variance is the bootstrap's, the form Wilson's: it is what n = p (1 - p) / variance items of a plain
    proportion would have. It covers 94 to 96 % where the percentiles of the resamples cover 93 to 95 %
    (simulated; tests/test_scores.py does so for the first).

    reduce: from how often each item was drawn (r, n) to values (r,).
    """
    values = np.concatenate([reduce(weights) for weights in resample(n)])
    variance = float(np.nanvar(values, ddof=1))
    items = value * (1 - value) / variance if variance > 0.0 and 0.0 < value < 1.0 else float(n)
    low, high = wilson(value * items, items)
    return len(values), max(low, 0.0), min(high, 1.0)


def draws_interval(hits: np.ndarray) -> tuple[float, float, float]:
    """Return mean, low and high of an accuracy over random draws of the training set; hits: (draws, n).

    A 95 % interval by Student's t, of the spread over draws and that over items together.
    """
    from scipy.stats import t

    draws, n = hits.shape
    mean = float(hits.mean())
    variance = hits.mean(0).var(ddof=1) / n if n > 1 else 0.25
    if draws > 1:
        variance += hits.mean(1).var(ddof=1) / draws
    half = float(t.ppf(0.975, max(draws - 1, 1))) * math.sqrt(variance)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def paired_bootstrap(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of per-item differences (n,).

    Items are resampled RESAMPLES times. Few different values are counted, not drawn one by one: the number
    of each in a resample is multinomial.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / n, [0.025, 0.975])
    return float(low), float(high)


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Test whether two judges of the same items are right equally often; two-sided mid-p.

    only_first, only_second: items that only one of them got right. The mid-p version keeps its level where
    the exact one is too careful (Fagerland, Lydersen and Laake, 2013).
    """
    from scipy.stats import binom

    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    return float(min(1.0, 2 * binom.cdf(fewer, n, 0.5) - binom.pmf(fewer, n, 0.5)))


def paired_z_p(differences: np.ndarray) -> float:
    """Test whether the mean of per-item differences (n,) is 0, two-sided, by the normal approximation."""
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return z_p(float(differences.mean()), deviation / math.sqrt(len(differences))) if deviation else 1.0


def z_p(difference: float, deviation: float) -> float:
    """Test whether a difference of known standard deviation is 0, two-sided, by the normal distribution."""
    if deviation == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return math.erfc(abs(difference) / deviation / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method (1979)."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def detectable_difference(differences: np.ndarray) -> float:
    """Estimate the mean difference that a 5 % test of n items would find in 80 % of cases."""
    spread = math.sqrt(max(float((differences**2).mean()), 1 / len(differences)))
    return (Z95 + Z80) * spread / math.sqrt(len(differences))
