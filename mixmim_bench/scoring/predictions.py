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
from mixmim_bench.scoring.metrics import METRICS, Items
from mixmim_bench.specs import Score

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
        """Score by metrics: value, 95 % interval (low, high) with its method, and n of each."""

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
        return {"ids": self.ids, "y": self.y.astype(np.int32), **_kept(names, self.scores)}

    @staticmethod
    def restore(name: str, arrays: Mapping[str, np.ndarray]) -> Kept:
        key = "best" if "best" in arrays else "scores"
        for wanted in ("ids", "y", key):
            if wanted not in arrays:
                raise BenchError(f"the predictions hold no {wanted}, only {', '.join(arrays)}")
        every = arrays[key] if arrays[key].ndim == 3 else arrays[key][None]  # of one draw, or of several
        return Kept(arrays["ids"], [_restored(name, arrays["y"], key, each) for each in every])


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


# kind of task -> the class that restores what was kept of it
PREDICTIONS: dict[str, type[Predictions]] = {
    metrics.CLASSIFICATION: ClassScores,
    metrics.MULTILABEL: ClassScores,
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
    hits = (values[:, : metric.best] == y[:, None]).any(axis=1)
    return [hits] if metric.is_mean else [hits, y]
