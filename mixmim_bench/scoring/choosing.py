"""Select one of several classifiers on val, such as one for each value of C.

The best value by the task's metric is not always a good one. If val is small, many values tie, and with a
small C the classifier may predict little more than the class frequencies: refit on train and val, whose
frequencies differ, it predicts a single class. So values of C are considered from the first one on that gains
half as much log-loss over the class frequencies as the best. Among these, values within one standard error of
the best by the metric, image by image, count as ties, which the lowest log-loss on val breaks. Ranking
metrics, which do not depend on frequencies, tie only if they are equal. In simulations of small, mostly
imbalanced settings, this rule loses little compared with the best C on test (benchmarks/README.md).
"""

import numpy as np
from scipy.special import log_expit, log_softmax

from mixmim_bench.scoring.metrics import METRICS, value

IMPROVEMENT = 1e-3  # of the log-loss, relatively; less is not worth another value
INFORMATIVE = (
    0.5  # of the best gain in log-loss over the class frequencies, that any classifier taken must have
)


def log_loss(y: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean of `log_losses`, 0 if there are none."""
    losses = log_losses(y, scores)
    return float(losses.mean()) if len(losses) else 0.0


def log_losses(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihoods of labels y (n,), or of known ones of (n, K) with -1 for unknown.

    Scores (n, K) are logits. Images of classes that no classifier has learnt (-inf) are ignored.
    """
    if y.ndim == 1:
        own = log_softmax(scores, axis=1)[np.arange(len(y)), y]
    else:
        own = np.where(y == 1, log_expit(scores), log_expit(-scores))[y >= 0]
    return -own[np.isfinite(own)]


class Sweep:
    """The scores on val of several classifiers, the smallest C first.

    `loss_of_frequencies`: the log-loss on val of the class frequencies of train.
    `patience`: the sweep may end after this many values without improvement of metric or log-loss, once the
    metric has left its initial value (0: never).
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
        score, loss = value(self.metric, self.y, scores), log_loss(self.y, scores)
        if not self.values or score > max(self.values) or loss < (1 - IMPROVEMENT) * min(self.losses):
            self._last = len(self.values)
        self.values.append(score)
        self.losses.append(loss)
        metric = METRICS[self.metric]
        if metric.shares is not None:
            items = metric.items(self.y, scores)
            self._shares = metric.shares(items)
            self._hits.append(items[0])

    @property
    def ended(self) -> bool:
        """Return whether the sweep may end."""
        moved = any(score != self.values[0] for score in self.values)
        return 0 < self.patience <= len(self.values) - 1 - self._last and moved

    def best(self) -> int:
        """Return the index of the selected classifier."""
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
