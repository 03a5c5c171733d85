"""What a judged backbone says of images; each kind of task has a class that scores and keeps it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mixmim_bench.scoring import metrics
from mixmim_bench.specs import Score


def of_all_classes(scores: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Widen the scores (n, k) of some classes (k,) to all: (n, K), -inf for a class never seen."""
    if len(classes) == num_classes:
        return scores
    wide = np.full((len(scores), num_classes), -np.inf, dtype=scores.dtype)
    wide[:, classes] = scores
    return wide


class Predictions(Protocol):
    """Predictions of one split."""

    def __len__(self) -> int: ...

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        """Score by official metrics: value, 95 % interval (low, high) and how it was made, n of each."""

    def guesses(self, names: Sequence[str], learnt_from: Any) -> dict[str, float]:
        """Score what knows only how frequent the classes are in the targets that were learnt from."""

    def kept(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return what is kept beside the record, to compare two models without running them again."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of the classes for images: the higher the likelier, -inf for a class never seen."""

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
        return {"ids": self.ids, **metrics.kept(names, self.y, self.scores)}


@dataclass(frozen=True)
class DrawScores:
    """Scores of the classes for the same images after each of several random draws of what was learnt from.

    The score is the mean over draws; `others` holds those of other settings, by a name for people.
    """

    ids: np.ndarray  # (n,) of str
    y: np.ndarray  # (n,)
    draws: Sequence[np.ndarray]  # each (n, K)
    others: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def scores_by(self, names: Sequence[str]) -> dict[str, Score]:
        found = {name: self._score(name, self.draws) for name in names}
        first = names[0]
        for other, draws in self.others.items():  # in short: what is said of the first holds for them too
            score = self._score(first, draws)
            value, low, high, std = (round(score[k], 5) for k in ("value", "low", "high", "std"))
            found[f"{first} {other}"] = {"value": value, "low": low, "high": high, "std": std}
        return found

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
        every = [metrics.kept(names, self.y, scores) for scores in self.draws]
        stacked = {key: np.stack([arrays[key] for arrays in every]) for key in every[0] if key != "y"}
        return {"ids": self.ids, "y": every[0]["y"], **stacked}
