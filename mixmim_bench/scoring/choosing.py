"""Choosing one of several classifiers on val, such as one for each value of C.

The best by the task's metric is not always a good one. Where val is small many values tie, and at a small C
the classifier may be little more than the class frequencies: refitted on train and val, where frequencies
differ, it predicts one class only. So values of C are considered from the first one on that gains half as
much in log-loss over the class frequencies as the best. Of these, values within one standard error of the
best by the metric, image by image, count as tied, and the lowest log-loss on val decides. Metrics that rank,
which frequencies do not change, tie only where they are equal. In simulations of small, mostly imbalanced
settings this rule loses little against the best C on test (benchmarks/README.md).
"""

import numpy as np
from scipy.special import log_expit, log_softmax

from mixmim_bench.scoring.metrics import METRICS, value

IMPROVEMENT = 1e-3  # of the log-loss, relatively; less is not worth another value
INFORMATIVE = (
    0.5  # of the best gain in log-loss over the class frequencies, that any classifier taken must have
)


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

    `loss_of_frequencies`: the log-loss on val of the class frequencies of train.
    `patience`: the sweep may end when that many were better neither by the metric nor by the log-loss, once
    the metric has left the value it started with (0: never).
    """

    def __init__(self, metric: str, y: np.ndarray, loss_of_frequencies: float, patience: int) -> None:
        self.metric = metric
        self.y = y
        self.loss_of_frequencies = loss_of_frequencies
        self.patience = patience
        self.values: list[float] = []
        self.losses: list[float] = []
        self._hits: list[np.ndarray] = []
        self._shares: np.ndarray | None = None  # stays None for metrics that are no means of hits
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
        values, losses = np.array(self.values), np.array(self.losses)
        gains = self.loss_of_frequencies - losses
        informative = np.arange(len(values)) >= np.argmax(gains >= INFORMATIVE * gains.max())
        values = np.where(informative, values, -np.inf)
        place = _lowest(losses, values == values.max())
        if self._shares is None:  # no standard error image by image: only equal values tie
            return place
        errors = np.array([self._error(place, hits) for hits in self._hits])
        return _lowest(losses, values[place] - values <= errors + 1e-12)

    def _error(self, place: int, hits: np.ndarray) -> float:
        """Return the standard error of the difference between hits (n,) and those of one classifier."""
        assert self._shares is not None
        return float(np.sqrt(((hits != self._hits[place]) * self._shares**2).sum()))


def _lowest(losses: np.ndarray, among: np.ndarray) -> int:
    return int(np.argmin(np.where(among, losses, np.inf)))


def loss_of_frequencies(y: np.ndarray, learnt_from: np.ndarray, num_classes: int) -> float:
    """Return the log-loss on labels y of the class frequencies in other labels, (m,) or (m, K)."""
    with np.errstate(divide="ignore"):
        if learnt_from.ndim == 1:
            scores = np.log(np.bincount(learnt_from, minlength=num_classes) / len(learnt_from))
        else:
            positive, negative = (learnt_from == 1).sum(0), (learnt_from == 0).sum(0)
            scores = np.log(positive) - np.log(negative)
    return log_loss(y, np.broadcast_to(scores, (len(y), num_classes)))
