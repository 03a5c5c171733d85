"""Scores class by class, and which classes are taken for which, from saved predictions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixmim_bench.errors import BenchError
from mixmim_bench.scoring.detection import NO_CLASS
from mixmim_bench.scoring.metrics import CLASSIFICATION, DETECTION, METRICS, SEGMENTATION, Items, score_items
from mixmim_bench.scoring.predictions import restore


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """The score of one class as a fraction, with its 95 % interval."""

    place: int  # of the class
    value: float
    low: float
    high: float
    n: int  # test images with the class


def scores_of_classes(kind: str, metric: str, arrays: Mapping[str, np.ndarray]) -> list[ClassScore]:
    """Score each class of the test images by the method of the whole score.

    Of classes: the share of a class's images that are right. Of several labels an image, label maps and
    objects: the metric, of this class alone. Classes that it is not defined for are left out.

    Args:
        kind: of task.
        metric: of `metric_of_classes`.
        arrays: what was saved of the run.

    Raises:
        BenchError: predictions are missing.
    """
    draws = restore(kind, metric, arrays).draws
    scores = []
    for place, n, of_class in _classes(kind, metric, arrays, draws):
        try:
            found = score_items(metric, of_class)
        except ValueError:  # such as no positive items
            continue
        scores.append(
            ClassScore(place=place, value=found["value"], low=found["low"], high=found["high"], n=n)
        )
    return scores


def metric_of_classes(kind: str, metric: str) -> str:
    """Return by which metric classes are scored, given that of the whole task."""
    if kind == CLASSIFICATION or METRICS[metric].best:
        return "top1"
    return "miou" if metric == "aacc" else metric


def _classes(
    kind: str, metric: str, arrays: Mapping[str, np.ndarray], draws: Sequence[Items]
) -> Iterator[tuple[int, int, list[Items]]]:
    """Yield each class, its number of test images, and what counts of each draw."""
    if metric == "top1":
        y = arrays["y"]
        for place in range(y.shape[1]) if y.ndim == 2 else np.unique(y).tolist():
            rows = y[:, place] == 1 if y.ndim == 2 else y == place
            if rows.any():
                yield place, int(rows.sum()), [[items[0][rows]] for items in draws]
    elif kind == DETECTION:
        for place in range(draws[0][-1].shape[1]):
            scores, labels, hits, skips, objects = draws[0]
            own = np.where(labels == place, 0, NO_CLASS)
            kept = [scores, own, hits, skips, objects[:, [place]]]
            yield place, int((objects[:, place] > 0).sum()), [kept]
    else:
        truth = -1 if kind == SEGMENTATION else 0  # labelled pixels, or labels
        for place in range(draws[0][0].shape[1]):
            n = int((draws[0][truth][:, place] > 0).sum())
            yield place, n, [[values[:, [place]] for values in items] for items in draws]


def confusions(arrays: Mapping[str, np.ndarray], num_classes: int = 0) -> np.ndarray:
    """Count how many images of each class (rows) were taken for each class (columns): (K, K).

    Counts are averaged over draws.

    Args:
        arrays: what was saved of a run with one label an image.
        num_classes: K; by default as many as occur.

    Raises:
        BenchError: images have several labels, or no classes were predicted.
    """
    key = "best" if "best" in arrays else "scores"
    if "y" not in arrays or key not in arrays:
        raise BenchError("its predictions are not classes of images")
    y, values = arrays["y"], arrays[key]
    if y.ndim != 1:
        raise BenchError("its images have several labels")
    every = values if values.ndim == 3 else values[None]
    predicted = every[..., 0] if key == "best" else every.argmax(-1)
    K = max(num_classes, int(y.max()) + 1, int(predicted.max()) + 1)
    counts = np.zeros((K, K))
    for each in predicted:
        np.add.at(counts, (y, each), 1.0 / len(predicted))
    return counts
