"""Intervals for scores."""

import math

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
