"""Metrics by name: per-item statistics of scores, and their weighted summary.

A metric computes statistics per item and reduces them with item weights: all ones for its value, counts for a
bootstrap resample. Labels are (n,) or, for several labels per item, (n, K) with 1, 0, and -1 for neither
(VOC's difficult objects). Scores are (n, K); higher is more likely. Label maps and
detections are counted as they are predicted, so that their items are given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mixmim_bench.scoring import segmentation
from mixmim_bench.scoring.detection import PRECISIONS, average_precisions
from mixmim_bench.scoring.intervals import (
    RESAMPLES,
    Spread,
    binomial_variance,
    hanley_mcneil_variance,
    spread_of_class_means,
    spread_of_mean,
    spread_of_ratio,
    spread_over_classes,
)
from mixmim_bench.specs import ECE, Score

Items = Sequence[np.ndarray]  # each (n, …)

CLASSIFICATION = "classification"
MULTILABEL = "multilabel"
SEGMENTATION = "segmentation"
DETECTION = "detection"

RESAMPLES_OF_DETECTIONS = 100  # each sorts all detections again


@dataclass(frozen=True)
class Metric:
    """A metric.

    `shares` is set for metrics that are weighted means of hits: the weights of the items (n,), with sum 1.
    """

    items: Callable[[np.ndarray, np.ndarray], Items]  # of labels and scores
    reduce: Callable[[Items, np.ndarray], np.ndarray]  # with weights (r, n): values (r,)
    spread: Callable[[Sequence[Items]], tuple[Spread, Score]]  # over draws; and what to record of it
    interval: str  # the name of the method, which a record states
    is_mean: bool = False  # the plain mean of what is right
    best: int = 0  # how many of the best classes of each item decide it; 0: all scores do
    shares: Callable[[Items], np.ndarray] | None = None
    kinds: tuple[str, ...] = (CLASSIFICATION,)  # of task
    resamples: int = RESAMPLES  # of the images, where scores are compared by resampling
    version: int = 1  # raised when its value may change


def value(name: str, y: np.ndarray, scores: np.ndarray) -> float:
    """Return a metric as a fraction; raises ValueError for NaN scores."""
    return value_of_items(name, items_of(name, y, scores))


def value_of_items(name: str, items: Items) -> float:
    """Return a metric of per-item statistics, as a fraction."""
    return _value(name, [items])


def score(name: str, y: np.ndarray, scores: np.ndarray) -> Score:
    """Score predictions: value as a fraction, its 95 % interval with the method, and n.

    Raises ValueError.
    """
    return score_items(name, [items_of(name, y, scores)])


def score_draws(name: str, y: np.ndarray, draws: Sequence[np.ndarray]) -> Score:
    """Score several draws of training images: their mean, with an interval that includes their variance.

    draws: scores (n, K) of the same items after each.
    """
    return score_items(name, [items_of(name, y, scores) for scores in draws])


def score_items(name: str, every: Sequence[Items]) -> Score:
    """Score the statistics of the same items after each of several draws, or of one."""
    metric = METRICS[name]
    values = np.array([_value(name, [items]) for items in every])
    spread, recorded = metric.spread(every)
    mean = _value(name, every)
    low, high = spread.with_draws(values).interval(mean)
    method = interval_method(name, len(every))
    return {"value": mean, "low": low, "high": high, "interval": method, "n": len(every[0][0]), **recorded}


def interval_method(name: str, draws: int = 1) -> str:
    """Return the name of the interval method of a metric."""
    return METRICS[name].interval + (" over draws" if draws > 1 else "")


def guess(name: str, y: np.ndarray, learnt_from: np.ndarray, num_classes: int) -> float:
    """Score constant predictions: the class frequencies in labels (m,) or (m, K).

    For metrics of the best class this is the majority class.
    """
    if learnt_from.ndim == 1:
        frequencies = np.bincount(learnt_from, minlength=num_classes).astype(np.float64)
    else:
        frequencies = (learnt_from == 1).sum(0) / np.maximum((learnt_from >= 0).sum(0), 1)
    return value(name, y, np.broadcast_to(frequencies, (len(y), num_classes)))


def lower_is_better(name: str) -> bool:
    """Return whether a lower score of that name is the better one: errors, in contrast to the metrics."""
    return name == ECE


def above_guess(value: float, guess: float) -> float | None:
    """Return (value - guess) / (1 - guess), 0 for a guess and 1 at best; None if a guess is always right."""
    return (value - guess) / (1.0 - guess) if guess < 1.0 else None


def is_a_guess(score: Score) -> bool:
    """Return whether a score is not significantly better than predicting the class frequencies."""
    return "guess" in score and score["low"] <= score["guess"]


def items_of(name: str, y: np.ndarray, scores: np.ndarray) -> Items:
    """Compute per-item statistics; raises ValueError for NaN scores."""
    if np.isnan(scores).any():
        raise ValueError("some scores are NaN: the training diverged")
    return METRICS[name].items(y, scores)


def _value(name: str, every: Sequence[Items]) -> float:
    reduce = METRICS[name].reduce
    return float(np.mean([reduce(items, np.ones((1, len(items[0]))))[0] for items in every]))


# -- one label an item, or a set of right ones ------------------------------------------------------


def hits_of_sets(y: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Return whether one of the best classes (n, k) is among the labels (n, K) of each item, (n,)."""
    return np.asarray(np.take_along_axis(y == 1, best, axis=1).any(axis=1))


def _hits(k: int) -> Callable[[np.ndarray, np.ndarray], Items]:
    def hits(y: np.ndarray, scores: np.ndarray) -> Items:
        """Return whether one of the labels is among the k best scores; the first class wins ties."""
        if y.ndim == 2:
            return [hits_of_sets(y, np.argsort(-scores, axis=1, kind="stable")[:, :k])]
        own = scores[np.arange(len(y)), y][:, None]
        earlier = np.arange(scores.shape[1]) < y[:, None]
        before = (scores > own) | ((scores == own) & earlier)
        return [before.sum(axis=1) < k]

    return hits


def _mean(items: Items, weights: np.ndarray) -> np.ndarray:
    return weights @ items[0] / weights.sum(1)


def _equal_shares(items: Items) -> np.ndarray:
    return np.full(len(items[0]), 1 / len(items[0]))


def _spread_of_mean(every: Sequence[Items]) -> tuple[Spread, Score]:
    return spread_of_mean(np.array([items[0] for items in every], dtype=np.float64)), {}


def _hits_and_labels(y: np.ndarray, scores: np.ndarray) -> Items:
    return [*_hits(1)(y, scores), y]


def _mean_per_class(items: Items, weights: np.ndarray) -> np.ndarray:
    """Average the accuracies of the classes with items (in a resample: drawn items)."""
    hits, y = items
    classes, codes = np.unique(y, return_inverse=True)
    counts = np.array([np.bincount(codes, each, len(classes)) for each in weights])
    right = np.array([np.bincount(codes, each * hits, len(classes)) for each in weights])
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(counts > 0, right / counts, np.nan), axis=1)


def _shares_of_classes(items: Items) -> np.ndarray:
    _, codes, counts = np.unique(items[1], return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[codes])


def _spread_of_class_means(every: Sequence[Items]) -> tuple[Spread, Score]:
    hits = np.array([items[0] for items in every], dtype=np.float64)
    spread, smallest = spread_of_class_means(hits, every[0][1])
    return spread, {"smallest_class": smallest}


# -- ranking ----------------------------------------------------------------------------------------


def _columns(y: np.ndarray, scores: np.ndarray) -> Items:
    """Return labels (n, K) of 1, 0 and -1 with their scores; of two classes only the second."""
    if y.ndim == 2:
        return [y, scores]
    labels = np.eye(scores.shape[1], dtype=np.int64)[y]
    if scores.shape[1] == 2:
        return [labels[:, 1:], scores[:, 1:] - scores[:, :1]]
    return [labels, scores]


OfColumn = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _of_classes(of_column: OfColumn, items: Items, weights: np.ndarray) -> np.ndarray:
    """Compute a metric for each column that has both positives and negatives: (r, K).

    Columns without positives in a resample are NaN. Raises ValueError if no column has both.
    """
    labels, scores = items
    columns = []
    for column in np.flatnonzero(_ranked(labels)):
        label, own = labels[:, column], scores[:, column]
        order = np.argsort(-own, kind="stable")
        order = order[label[order] >= 0]
        # what has the same score comes in or stays out together, also where it is -inf
        last = np.append(np.flatnonzero(own[order][1:] != own[order][:-1]), len(order) - 1)
        drawn = weights[:, order]
        positive = np.cumsum(drawn * label[order], axis=1)[:, last]
        everything = np.cumsum(drawn, axis=1)[:, last]
        columns.append(of_column(positive, everything))
    if not columns:
        raise ValueError("no class has both positive and negative items")
    return np.stack(columns, axis=1)


def _ranked(labels: np.ndarray) -> np.ndarray:
    """Return which columns of labels (n, K) have both positives and negatives."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def _mean_of_classes(of_column: OfColumn, items: Items, weights: np.ndarray) -> np.ndarray:
    """Average over the columns, ignoring those without positives in a resample."""
    per_class = _of_classes(of_column, items, weights)
    known = ~np.isnan(per_class)
    with np.errstate(invalid="ignore"):
        return np.where(known, per_class, 0.0).sum(1) / known.sum(1)


def _spread_of_ranking(
    of_column: OfColumn, prior: Callable[..., np.ndarray], every: Sequence[Items]
) -> tuple[Spread, Score]:
    labels = every[0][0]
    ranked = labels[:, _ranked(labels)]
    positives, negatives = (ranked == 1).sum(0), (ranked == 0).sum(0)

    def reduce(weights: np.ndarray) -> np.ndarray:
        return np.mean([_of_classes(of_column, items, weights) for items in every], axis=0)

    spread = spread_over_classes(reduce, len(labels), positives, negatives, prior)
    smallest = int(np.minimum(positives, negatives).min())
    return spread, {"smallest_class": smallest, "resamples": RESAMPLES}


def _ranking(of_column: OfColumn, prior: Callable[..., np.ndarray]) -> Metric:
    return Metric(
        items=_columns,
        reduce=partial(_mean_of_classes, of_column),
        spread=partial(_spread_of_ranking, of_column, prior),
        interval="smoothed bootstrap",
        kinds=(CLASSIFICATION, MULTILABEL),
        version=2,  # 2: equal scores of -inf are ties
    )


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
        found += np.take_along_axis(best, np.minimum(first, best.shape[1] - 1), 1)[:, 0]
    return np.where(np.isnan(recall[:, -1]), np.nan, found / 11)


def _roc_auc(positive: np.ndarray, everything: np.ndarray) -> np.ndarray:
    """Count the pairs in which the positive scores higher; equal ones count half."""
    negative = everything - positive
    steps = np.diff(negative, axis=1, prepend=0.0)
    before = np.concatenate([np.zeros_like(positive[:, :1]), positive[:, :-1]], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (steps * (before + positive) / 2).sum(1) / (positive[:, -1] * negative[:, -1])


# -- pixels and objects -------------------------------------------------------------------------------


def _given(y: np.ndarray, items: Any) -> Items:
    """Return the statistics of label maps or detections, which are counted image by image."""
    del y
    return list(items)


OfClasses = Callable[[Items, np.ndarray], np.ndarray]  # values of the classes (r, K), NaN for absent ones


def _mean_of_present(of_classes: OfClasses, items: Items, weights: np.ndarray) -> np.ndarray:
    """Average over the classes that occur (r,); NaN if none does."""
    values = of_classes(items, weights)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(1) / known.sum(1)


def _spread_of_images(of_classes: OfClasses, resamples: int, every: Sequence[Items]) -> tuple[Spread, Score]:
    (items,) = every
    truth = items[-1]  # labelled pixels, or objects, of each class
    n, images = len(truth), (truth > 0).sum(0)
    present = ~np.isnan(of_classes(items, np.ones((1, n)))[0])
    if not present.any():
        raise ValueError("no class occurs in the test images")
    smallest = images[present].clip(min=1)

    def values(weights: np.ndarray) -> np.ndarray:
        return of_classes(items, weights)[:, present]

    spread = spread_over_classes(values, n, smallest, np.full_like(smallest, n), binomial_variance, resamples)
    return spread, {"smallest_class": int(smallest.min()), "resamples": resamples}


def _of_images(of_classes: OfClasses, kind: str, resamples: int) -> Metric:
    return Metric(
        items=_given,
        reduce=partial(_mean_of_present, of_classes),
        spread=partial(_spread_of_images, of_classes, resamples),
        interval="smoothed bootstrap over images",
        kinds=(kind,),
        resamples=resamples,
    )


def _spread_of_pixels(every: Sequence[Items]) -> tuple[Spread, Score]:
    (items,) = every
    return spread_of_ratio(*(items[place].sum(1).astype(np.float64) for place in (0, 2))), {}


def _accuracy(k: int) -> Metric:
    return Metric(
        _hits(k),
        _mean,
        _spread_of_mean,
        "wilson",
        is_mean=True,
        best=k,
        shares=_equal_shares,
        kinds=(CLASSIFICATION, MULTILABEL),
    )


METRICS: dict[str, Metric] = {
    "top1": _accuracy(1),
    "top5": _accuracy(5),
    "mean_per_class": Metric(
        _hits_and_labels,
        _mean_per_class,
        _spread_of_class_means,
        "wilson of smoothed class rates",
        best=1,
        shares=_shares_of_classes,
    ),
    "roc_auc": _ranking(_roc_auc, hanley_mcneil_variance),
    "mean_ap": _ranking(_average_precision, binomial_variance),
    "mean_ap_11": _ranking(_average_precision_11, binomial_variance),
    "miou": _of_images(segmentation.iou_of_classes, SEGMENTATION, RESAMPLES),
    "macc": _of_images(segmentation.accuracy_of_classes, SEGMENTATION, RESAMPLES),
    "aacc": Metric(
        _given, segmentation.pixel_accuracy, _spread_of_pixels, "linearised ratio", kinds=(SEGMENTATION,)
    ),
    **{
        name: _of_images(
            partial(average_precisions, overlaps=precision.overlaps), DETECTION, RESAMPLES_OF_DETECTIONS
        )
        for name, precision in PRECISIONS.items()
    },
}
