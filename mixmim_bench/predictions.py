"""What a judged backbone says of images; each kind of task has a class that scores and keeps it."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mixmim_bench import metrics

KEPT_CLASSES = 5  # of each image's scores, the best are kept beside the record


class Predictions(Protocol):
    """Predictions of one split."""

    def __len__(self) -> int: ...

    def score(self, metric: str) -> dict[str, Any]:
        """Score by an official metric: value, 95 % interval (low, high) and how it was made, n."""

    def kept(self) -> dict[str, np.ndarray]:
        """Return what is kept beside the record, to compare two models without running them again."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of the classes for images: the higher the likelier, -inf for a class never seen."""

    ids: np.ndarray  # (n,) of str
    y: np.ndarray  # (n,)
    scores: np.ndarray  # (n, K)

    def __len__(self) -> int:
        return len(self.y)

    def score(self, metric: str) -> dict[str, Any]:
        return metrics.score(metric, self.y, self.scores)

    def kept(self) -> dict[str, np.ndarray]:
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, :KEPT_CLASSES]
        return {
            "ids": self.ids,
            "y": self.y.astype(np.int32),
            "best": best.astype(np.int32),
            "best_scores": np.take_along_axis(self.scores, best, 1).astype(np.float32),
        }
