"""Metrics by name: per-item statistics of class scores, and their summary with an interval."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mixmim_bench.stats import wilson


def _hits(k: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def hits(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Whether the label is among the k best scores; of equal scores the first class wins."""
        own = scores[np.arange(len(y)), y][:, None]
        earlier = np.arange(scores.shape[1]) < y[:, None]
        before = (scores > own) | ((scores == own) & earlier)
        return before.sum(axis=1) < k

    return hits


_TOP = {"top1": 1, "top5": 5}  # how many classes may be named

# name -> (y (n,), scores (n, K)) -> which items are right (n,)
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    name: _hits(k) for name, k in _TOP.items()
}


def kept_hits(metric: str, y: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Say from kept predictions which items are right (n,); best: the best classes (n, k), best first."""
    return (best[:, : _TOP[metric]] == y[:, None]).any(axis=1)


def score(metric: str, y: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Score predictions: value as a fraction, its 95 % interval and how that was made, and n.

    y: labels (n,). scores: the higher the likelier, (n, K). Raises ValueError for scores that are not
    numbers: they have no order.
    """
    if np.isnan(scores).any():
        raise ValueError("some scores of the classes are not numbers: the training diverged")
    items = METRICS[metric](y, scores)
    low, high = wilson(int(items.sum()), len(items))
    return {
        "value": float(items.mean()),
        "low": low,
        "high": high,
        "interval": "wilson",
        "n": len(items),
    }
