"""Predictions: each kind of task has a class that scores, saves and restores them.

A metric is computed from per-item statistics (`Metric.items`), so the saved arrays only need to restore
these: `compare` and recomputed intervals do not depend on how a kind of task stores its predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mixmim_bench.errors import BenchError
from mixmim_bench.scoring import metrics
from mixmim_bench.scoring.calibration import score_calibration
from mixmim_bench.scoring.detection import AREAS, FREQUENCIES, NO_CLASS, PRECISIONS, Found, Matched
from mixmim_bench.scoring.metrics import METRICS, Items
from mixmim_bench.specs import ECE, Score

KEPT_CLASSES = 5  # of each image's scores, the best are kept


@dataclass(frozen=True)
class Kept:
    """The saved predictions of a run for one metric: ids (n,) and per-item statistics of each draw."""

    ids: np.ndarray
    draws: list[Items]


def of_all_classes(scores: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Expand scores (n, k) of some classes (k,) to all classes (n, K), with -inf for the others."""
    if len(classes) == num_classes:
        return scores
    wide = np.full((len(scores), num_classes), -np.inf, dtype=scores.dtype)
    wide[:, classes] = scores
    return wide


class Predictions(Protocol):
    """Predictions of one split."""

    def __len__(self) -> int: ...

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        """Score by metrics that are defined for the split: value, 95 % interval, its method, and n."""

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        """Score the prediction of the class frequencies in the training targets."""

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the arrays to save beside the record, for later comparisons."""

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        """Restore the per-item statistics of a metric from saved arrays; raises BenchError."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of the classes for images: higher is more likely, -inf for classes without training images."""

    ids: np.ndarray  # (n,) of str
    y: np.ndarray  # (n,)
    scores: np.ndarray  # (n, K)

    def __len__(self) -> int:
        return len(self.y)

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        return {name: metrics.score(name, self.y, self.scores) for name in names}

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        K = self.scores.shape[1]
        return {name: metrics.guess(name, self.y, learnt_from.values, K) for name in names}

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        y = self.y.astype(np.int32 if self.y.ndim == 1 else np.int8)
        return {"ids": self.ids, "y": y, **_kept(names, self.scores)}

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        key = "best" if "best" in arrays else "scores"
        _require(arrays, "ids", "y", key)
        every = arrays[key] if arrays[key].ndim == 3 else arrays[key][None]  # of one draw, or of several
        return Kept(arrays["ids"], [_restored(name, arrays["y"], key, each) for each in every])


@dataclass(frozen=True)
class ClassifierScores(ClassScores):
    """Scores of a classifier, with the probability (n,) that it gives to its best class.

    Where the best class is scored, so is the expected calibration error, as `ece`.
    """

    confidence: np.ndarray

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        scores = super().scores_by(names)
        if "top1" in names:
            (hits,) = metrics.items_of("top1", self.y, self.scores)
            scores[ECE] = score_calibration(self.confidence, hits)
        return scores

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {**super().kept(names), "confidence": self.confidence.astype(np.float32)}


@dataclass(frozen=True)
class DrawScores:
    """Scores of the classes for the same images after several random draws of training images.

    The score is the mean over draws; `others` holds the scores of other settings by name.
    """

    ids: np.ndarray  # (n,) of str
    y: np.ndarray  # (n,)
    draws: Sequence[np.ndarray]  # each (n, K)
    others: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        scores = {name: self._score(name, self.draws) for name in names}
        first = names[0]
        for other, draws in self.others.items():  # in short: what is said of the first holds for them too
            score = self._score(first, draws)
            value, low, high, std = (round(score[k], 5) for k in ("value", "low", "high", "std"))
            scores[f"{first} {other}"] = {"value": value, "low": low, "high": high, "std": std}
        return scores

    def _score(self, name: str, draws: Sequence[np.ndarray]) -> Score:
        values = np.array([metrics.value(name, self.y, scores) for scores in draws])
        return {
            **metrics.score_draws(name, self.y, draws),
            "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            "draws": len(values),
        }

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        return ClassScores(self.ids, self.y, self.draws[0]).guesses(names, learnt_from)

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        every = [_kept(names, scores) for scores in self.draws]
        stacked = {key: np.stack([arrays[key] for arrays in every]) for key in every[0]}
        return {"ids": self.ids, "y": self.y.astype(np.int32), **stacked}

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        return ClassScores.restore(name, arrays)


@dataclass(frozen=True)
class PixelCounts:
    """Label maps of images, as pixels that agree, predicted and labelled ones of each class.

    `shown` holds label maps of some images, to be drawn.
    """

    ids: np.ndarray  # (n,) of str
    counts: np.ndarray  # (n, 3, K)
    shown: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def items(self) -> Items:
        """The statistics that all metrics are computed from."""
        return list(self.counts.transpose(1, 0, 2))

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        return {name: metrics.score_items(name, [self.items]) for name in names}

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        """Score the most frequent class of the training pixels, predicted everywhere."""
        labelled = self.counts[:, 2]
        guess = np.zeros_like(self.counts)
        most = int(learnt_from.pixels().argmax())
        guess[:, 0, most], guess[:, 1, most], guess[:, 2] = labelled[:, most], labelled.sum(1), labelled
        return {name: metrics.value_of_items(name, list(guess.transpose(1, 0, 2))) for name in names}

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        del names
        return {"ids": self.ids, "pixels": self.counts.astype(np.int32), **self.shown}

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        del name
        _require(arrays, "ids", "pixels")
        return Kept(arrays["ids"], [list(arrays["pixels"].astype(np.int64).transpose(1, 0, 2))])


@dataclass(frozen=True)
class Detections:
    """Detections of images, matched with their objects.

    Attributes:
        ids: (n,) of str.
        found: the detections of each image.
        boxes, masks: the matches of each image by overlaps of boxes and of masks; None without masks.
        images_of_classes: in how many training images each class occurs (K,).
        shown: detections of some images, to be drawn.
    """

    ids: np.ndarray
    found: Sequence[Found]
    boxes: Sequence[Matched]
    masks: Sequence[Matched] | None
    images_of_classes: np.ndarray
    shown: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        kept, scores = self.kept(names), {}
        for name in names:
            draws = self.restore(name, kept).draws
            if draws[0][-1].any() or name == names[0]:  # else no object, such as none that is large
                scores[name] = metrics.score_items(name, draws)
        return scores

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        """Return 0: knowing how frequent classes are finds no object."""
        del learnt_from
        return dict.fromkeys(names, 0.0)

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {
            "ids": self.ids,
            "images_of_classes": self.images_of_classes,
            "scores": _padded([each.scores for each in self.found], 0.0, np.float32),
            "labels": _padded([each.labels for each in self.found], NO_CLASS, np.int16),
            **self.shown,
        }
        wanted = {PRECISIONS[name].by_masks for name in names}
        for by_masks, matched in ((False, self.boxes), (True, self.masks)):
            if by_masks in wanted and matched is not None:
                prefix = _prefix(by_masks)
                arrays["objects"] = np.stack([each.objects for each in matched])
                arrays[f"{prefix}_hits"] = _padded([each.hits for each in matched], 0, np.uint16)
                arrays[f"{prefix}_skips"] = _padded([each.skips for each in matched], 0, np.uint16)
        return arrays

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        precision = PRECISIONS[name]
        prefix = _prefix(precision.by_masks)
        _require(arrays, "ids", "scores", "labels", "objects", f"{prefix}_hits", f"{prefix}_skips")
        area = list(AREAS).index(precision.area)
        objects = arrays["objects"][:, :, area]
        if precision.frequency:
            low, high = FREQUENCIES[precision.frequency]
            images = arrays["images_of_classes"]
            objects = objects * ((images > low) & (images <= high))
        items = [
            arrays["scores"],
            arrays["labels"],
            arrays[f"{prefix}_hits"][..., area],
            arrays[f"{prefix}_skips"][..., area],
            objects,
        ]
        return Kept(arrays["ids"], [items])


def _prefix(by_masks: bool) -> str:
    return "mask" if by_masks else "box"


def _padded(rows: Sequence[np.ndarray], fill: Any, dtype: Any) -> np.ndarray:
    """Stack arrays of different lengths."""
    most = max([1, *map(len, rows)])
    padded = np.full((len(rows), most, *rows[0].shape[1:]), fill, dtype=dtype)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def _require(arrays: Mapping[str, np.ndarray], *names: str) -> None:
    for name in names:
        if name not in arrays:
            raise BenchError(f"the predictions hold no {name}, only {', '.join(arrays)}")


# kind of task -> the class that restores what was kept of it
PREDICTIONS: dict[str, type[Predictions]] = {
    metrics.CLASSIFICATION: ClassScores,
    metrics.MULTILABEL: ClassScores,
    metrics.SEGMENTATION: PixelCounts,
    metrics.DETECTION: Detections,
}


def restore(kind: str, name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
    """Restore the saved predictions of a run for one metric; raises BenchError."""
    return PREDICTIONS[kind].restore(name, arrays)


def _kept(names: Sequence[str], scores: np.ndarray) -> dict[str, np.ndarray]:
    """Reduce scores (n, K) to what the metrics need: the best classes, or all scores."""
    if any(METRICS[name].best == 0 for name in names):
        return {"scores": scores.astype(np.float32)}
    most = max(KEPT_CLASSES, *(METRICS[name].best for name in names))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    return {
        "best": best.astype(np.int32),
        "best_scores": np.take_along_axis(scores, best, 1).astype(np.float32),
    }


def _restored(name: str, y: np.ndarray, key: str, values: np.ndarray) -> Items:
    metric = METRICS[name]
    if key == "scores":  # another metric of the task needs all of them
        return metric.items(y, values)
    best = values[:, : metric.best]
    if y.ndim == 2:
        return [metrics.hits_of_sets(y, best)]
    hits = (best == y[:, None]).any(axis=1)
    return [hits] if metric.is_mean else [hits, y]
