"""Paired tests of the difference of two scores."""

import math
from collections.abc import Sequence

import numpy as np

from mixmim_bench.scoring.intervals import Z95

Z80 = 0.8416212335729143  # the 80 % point of the normal distribution
RESAMPLES = 10_000


def paired_bootstrap(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of per-item differences (n,).

    Items are resampled RESAMPLES times. If there are few distinct values, their multinomial counts are drawn
    instead of the items.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(drawn @ values / n, [0.025, 0.975])
    return float(low), float(high)


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test of equal accuracy on the same items; two-sided mid-p.

    only_first, only_second: items that only one of the two got right. The mid-p version keeps its level
    where the exact test is conservative (Fagerland, Lydersen and Laake, 2013).
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


def crossed_variance(values: np.ndarray, of_mean: float, of_each: float) -> tuple[float, float]:
    """Estimate the variance of the mean of a difference over seeds and items, both drawn at random.

    values (S,): the difference after each seed. of_mean, of_each: the variance over items of the difference
    that is averaged over the seeds, and of that of one seed, on average. The interaction of seeds and items
    is in both parts and subtracted once. Returns the variance and the part of it that the seeds contribute.
    """
    seeds = len(values)
    of_seeds = float(values.var(ddof=1)) / seeds
    shared = max(0.0, (of_each - of_mean) / (seeds - 1))
    return max(of_mean + of_seeds - shared, of_mean), of_seeds


def seeds_t(values: np.ndarray, of_mean: float, of_each: float, n: int) -> tuple[float, float]:
    """Test whether the mean of a difference over S >= 2 seeds and n items is 0.

    Returns p and half of a 95 % interval. Student's t with Satterthwaite's degrees of freedom, and at least
    the variance of the seeds alone: with two or three seeds the sum of both parts would be too confident
    (simulated in tests/test_compare.py). The arguments are those of crossed_variance.
    """
    from scipy.stats import t

    variance, of_seeds = crossed_variance(values, of_mean, of_each)
    few = len(values) - 1
    difference = abs(float(values.mean()))
    if variance == 0.0:
        return (1.0 if difference == 0.0 else 0.0), 0.0
    df = variance**2 / (of_mean**2 / max(n - 1, 1) + of_seeds**2 / few)
    parts = [(math.sqrt(variance), df), (math.sqrt(of_seeds), few)]
    parts = [(deviation, df) for deviation, df in parts if deviation > 0.0]
    p = max(float(2 * t.sf(difference / deviation, df)) for deviation, df in parts)
    return p, max(float(t.ppf(0.975, df)) * deviation for deviation, df in parts)


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
