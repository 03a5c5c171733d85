"""Metrics by name: per-item statistics of scores, and their weighted summary.

A metric makes statistics of each item, and reduces them with weights of the items: all ones for its value,
how often each was drawn for a bootstrap resample. Labels are (n,), or for several labels an item (n, K)
with 1, 0, and -1 for what is neither (VOC's difficult objects). Scores are (n, K), the higher the likelier.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixmim_bench.stats import bootstrap, draws_interval, wilson

Items = Sequence[np.ndarray]  # each (n, …)
KEPT_CLASSES = 5  # of each image's scores, the best are kept beside the record


@dataclass(frozen=True)
class Metric:
    """How scores are judged."""

    items: Callable[[np.ndarray, np.ndarray], Items]  # of labels and scores
    reduce: Callable[[Items, np.ndarray], np.ndarray]  # with weights (r, n): values (r,)
    best: int = 0  # how many of the best classes of each item decide it; 0: all scores do, and they
    # may be of several labels an item


def value(name: str, y: np.ndarray, scores: np.ndarray) -> float:
    """Return a metric as a fraction; raises ValueError for scores that are not numbers."""
    items = _items(name, y, scores)
    return float(METRICS[name].reduce(items, np.ones((1, len(y))))[0])


def score(name: str, y: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """Score predictions: value as a fraction, its 95 % interval and how that was made, and n.

    Plain accuracies have Wilson's interval, the others a bootstrap over items. Raises ValueError.
    """
    items = _items(name, y, scores)
    metric = METRICS[name]
    found = float(metric.reduce(items, np.ones((1, len(y))))[0])
    if is_mean(name):
        low, high = wilson(int(items[0].sum()), len(y))
        return {"value": found, "low": low, "high": high, "interval": "wilson", "n": len(y)}
    resamples, low, high = bootstrap(found, lambda weights: metric.reduce(items, weights), len(y))
    return {
        "value": found,
        "low": low,
        "high": high,
        "interval": "bootstrap",
        "resamples": resamples,
        "n": len(y),
    }


def score_draws(name: str, y: np.ndarray, draws: Sequence[np.ndarray]) -> dict[str, Any]:
    """Score what was learnt from several random draws: the mean, with an interval that covers the draws too.

    draws: scores (n, K) of the same items after each. Plain accuracies have Student's interval of the spread
    over draws and over items; the others a bootstrap of both.
    """
    every = [_items(name, y, scores) for scores in draws]
    if is_mean(name):
        mean, low, high = draws_interval(np.array([items[0] for items in every], dtype=np.float64))
        return {"value": mean, "low": low, "high": high, "interval": "t over draws and items", "n": len(y)}
    rng = np.random.default_rng(0)

    def reduce(weights: np.ndarray) -> np.ndarray:
        values = np.array([METRICS[name].reduce(items, weights) for items in every])  # (draws, r)
        drawn = rng.integers(len(every), size=values.shape)
        return np.take_along_axis(values, drawn, 0).mean(0)

    mean = float(np.mean([METRICS[name].reduce(items, np.ones((1, len(y)))) for items in every]))
    resamples, low, high = bootstrap(mean, reduce, len(y))
    return {
        "value": mean,
        "low": low,
        "high": high,
        "interval": "bootstrap of draws and items",
        "resamples": resamples,
        "n": len(y),
    }


def is_mean(name: str) -> bool:
    """Whether a metric is the plain mean of what is right."""
    return METRICS[name].reduce is _mean


def kept(names: Sequence[str], y: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return of predictions what is needed to reduce metrics again: the best classes, or all scores."""
    if any(METRICS[name].best == 0 for name in names):
        return {"y": y.astype(np.int32), "scores": scores.astype(np.float32)}
    best = np.argsort(-scores, axis=1, kind="stable")[
        :, : max(KEPT_CLASSES, *(METRICS[n].best for n in names))
    ]
    return {
        "y": y.astype(np.int32),
        "best": best.astype(np.int32),
        "best_scores": np.take_along_axis(scores, best, 1).astype(np.float32),
    }


def kept_items(name: str, arrays: Mapping[str, np.ndarray]) -> Items:
    """Make the statistics of each item again from what was kept."""
    y, metric = arrays["y"], METRICS[name]
    if metric.best == 0:
        return metric.items(y, arrays["scores"])
    hits = (arrays["best"][:, : metric.best] == y[:, None]).any(axis=1)
    return [hits] if is_mean(name) else [hits, y]


def _items(name: str, y: np.ndarray, scores: np.ndarray) -> Items:
    if np.isnan(scores).any():
        raise ValueError("some scores of the classes are not numbers: the training diverged")
    return METRICS[name].items(y, scores)


# -- one label an item ------------------------------------------------------------------------------


def _hits(k: int) -> Callable[[np.ndarray, np.ndarray], Items]:
    def hits(y: np.ndarray, scores: np.ndarray) -> Items:
        """Whether the label is among the k best scores; of equal scores the first class wins."""
        own = scores[np.arange(len(y)), y][:, None]
        earlier = np.arange(scores.shape[1]) < y[:, None]
        before = (scores > own) | ((scores == own) & earlier)
        return [before.sum(axis=1) < k]

    return hits


def _mean(items: Items, weights: np.ndarray) -> np.ndarray:
    return weights @ items[0] / weights.sum(1)


def _hits_and_labels(y: np.ndarray, scores: np.ndarray) -> Items:
    return [*_hits(1)(y, scores), y]


def _mean_per_class(items: Items, weights: np.ndarray) -> np.ndarray:
    """Average the accuracies of the classes that are there (those that were drawn, in a resample)."""
    hits, y = items
    classes, codes = np.unique(y, return_inverse=True)
    belongs = np.eye(len(classes))[codes]
    counts = weights @ belongs
    right = weights @ (belongs * hits[:, None])
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(counts > 0, right / counts, np.nan), axis=1)


# -- ranking ----------------------------------------------------------------------------------------


def _columns(y: np.ndarray, scores: np.ndarray) -> Items:
    """Give labels (n, K) of 1, 0 and -1 with their scores; of two classes only the second."""
    if y.ndim == 2:
        return [y, scores]
    labels = np.eye(scores.shape[1], dtype=np.int64)[y]
    if scores.shape[1] == 2:
        return [labels[:, 1:], scores[:, 1:] - scores[:, :1]]
    return [labels, scores]


def _each_column(
    of_column: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Items, np.ndarray], np.ndarray]:
    """Average over the columns that have both positives and negatives."""

    def reduce(items: Items, weights: np.ndarray) -> np.ndarray:
        labels, scores = items
        found = []
        for label, column in zip(labels.T, scores.T, strict=True):
            order = np.argsort(-column, kind="stable")
            order = order[label[order] >= 0]
            if len(np.unique(label[order])) < 2:
                continue
            # what has the same score comes in or stays out together
            last = np.flatnonzero(np.diff(column[order], append=np.nan) != 0)
            drawn = weights[:, order]
            positive = np.cumsum(drawn * label[order], axis=1)[:, last]
            everything = np.cumsum(drawn, axis=1)[:, last]
            found.append(of_column(positive, everything))
        if not found:
            raise ValueError("no class has both positive and negative items")
        return np.nanmean(found, axis=0)  # a resample without positives says nothing of a column

    return reduce


def _precision_and_recall(positive: np.ndarray, everything: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(everything > 0, positive / everything, 0.0)
        recall = np.where(positive[:, -1:] > 0, positive / positive[:, -1:], np.nan)
    return precision, recall


def _average_precision(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Sum the precisions over the steps of recall, as scikit-learn and VOC since 2010 (not interpolated)."""
    precision, recall = _precision_and_recall(positive, everything)
    return (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)


def _average_precision_11(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Average the best precision at recall of at least 0, 0.1, …, 1, as VOC until 2009."""
    precision, recall = _precision_and_recall(positive, everything)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(len(precision))
    for level in np.linspace(0, 1, 11):
        first = (recall < level - 1e-12).sum(1)[:, None]  # the last recall is 1
        found += np.take_along_axis(best, np.minimum(first, best.shape[1] - 1), 1)[:, 0] / 11
    return np.where(np.isnan(recall[:, -1]), np.nan, found)


def _roc_auc(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Count the pairs in which the positive scores higher; equal ones count half."""
    negative = everything - positive
    steps = np.diff(negative, axis=1, prepend=0.0)
    before = np.concatenate([np.zeros_like(positive[:, :1]), positive[:, :-1]], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (steps * (before + positive) / 2).sum(1) / (positive[:, -1] * negative[:, -1])


METRICS: dict[str, Metric] = {
    "top1": Metric(_hits(1), _mean, best=1),
    "top5": Metric(_hits(5), _mean, best=5),
    "mean_per_class": Metric(_hits_and_labels, _mean_per_class, best=1),
    "roc_auc": Metric(_columns, _each_column(_roc_auc)),
    "mean_ap": Metric(_columns, _each_column(_average_precision)),
    "mean_ap_11": Metric(_columns, _each_column(_average_precision_11)),
}
