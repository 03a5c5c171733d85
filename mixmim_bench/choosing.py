"""Choosing one of several classifiers on val, such as one for each value of C.

The best by the task's metric is not always a good one. Where val is small many values tie, and among small C
the classifier may be hardly more than the frequencies of the classes: fitted again on train and val, whose
frequencies are others, it answers one class only. So what is within one standard error of the best, image by
image, counts as tied, and the lowest log-loss on val decides. Over small, mostly imbalanced simulated
settings that choice loses least against the best C on test (benchmarks/README.md).
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_expit, log_softmax

from mixmim_bench.metrics import METRICS, value

IMPROVEMENT = 1e-3  # of the log-loss, relatively; less is not worth another value


def log_loss(y: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean negative log-likelihood of labels y (n,), or (n, K) with -1 for what is open.

    Scores (n, K) are logits. A class that was never learnt (-inf) cannot be told by any of the classifiers,
    so its images are left out.
    """
    if y.ndim == 1:
        own = log_softmax(scores, axis=1)[np.arange(len(y)), y]
    else:
        own = np.where(y == 1, log_expit(scores), log_expit(-scores))[y >= 0]
    own = own[np.isfinite(own)]
    return -float(own.mean()) if len(own) else 0.0


class Sweep:
    """What val says of each of several classifiers, the smallest C first.

    `patience`: the sweep may end when that many were better neither by the metric nor by the log-loss, once
    the metric has left the value it started with (0: never).
    """

    def __init__(self, metric: str, y: np.ndarray, patience: int) -> None:
        self.metric = metric
        self.y = y
        self.patience = patience
        self.values: list[float] = []
        self.losses: list[float] = []
        self._hits: list[np.ndarray] = []
        self._shares: np.ndarray | None = None
        self._last = 0  # the last one that was better than those before it

    def add(self, scores: np.ndarray) -> None:
        """Evaluate the next classifier by its scores (n, K) on val."""
        found, loss = value(self.metric, self.y, scores), log_loss(self.y, scores)
        if not self.values or found > max(self.values) or loss < (1 - IMPROVEMENT) * min(self.losses):
            self._last = len(self.values)
        self.values.append(found)
        self.losses.append(loss)
        metric = METRICS[self.metric]
        if metric.shares is not None:
            items = metric.items(self.y, scores)
            self._shares = metric.shares(items)
            self._hits.append(items[0])

    @property
    def ended(self) -> bool:
        """Whether more values are not worth their time."""
        moved = any(found != self.values[0] for found in self.values)
        return 0 < self.patience <= len(self.values) - 1 - self._last and moved

    def best(self) -> int:
        """Return the place of the classifier to take."""
        values = np.array(self.values)
        place = _lowest(self.losses, np.flatnonzero(values == values.max()))
        if self._shares is None:  # no standard error image by image: only equal values tie
            return place
        hits = np.array(self._hits)
        differs = hits != hits[place]
        error = np.sqrt(differs @ self._shares**2)
        return _lowest(self.losses, np.flatnonzero(values[place] - values <= error + 1e-12))


def _lowest(losses: Sequence[float], places: np.ndarray) -> int:
    return int(places[np.argmin(np.array(losses)[places])])
