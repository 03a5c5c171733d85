"""Intervals for scores, and paired tests of their differences."""

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (1927), 95 % by default; raises ValueError at n = 0."""
    if n < 1:
        raise ValueError("an interval needs at least one item")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at the ends the bound is the end itself, which rounding would miss
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


RESAMPLES = 10_000


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
    if deviation == 0.0:
        return 1.0
    z = abs(float(differences.mean())) / (deviation / math.sqrt(len(differences)))
    return math.erfc(z / math.sqrt(2))


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
    return (Z95 + 0.8416) * spread / math.sqrt(len(differences))
