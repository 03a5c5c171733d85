"""`knn` for classification: weighted nearest neighbours of frozen, pooled features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.protocols import Fitted, require

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.bench import Split, Workbench

CHUNK = 1024  # queries whose similarities are held at once


@dataclass(frozen=True, kw_only=True)
class KNN:
    """Vote of the k nearest by cosine, each weighted by exp(similarity / temperature).

    DINO's evaluation (arXiv 2104.14294); k is chosen on val, and train and val vote on test.
    """

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "k nearest neighbours"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        require(len(self.k) > 0 and min(self.k) >= 1, "k must be whole numbers of at least 1")
        require(self.temperature > 0.0, "temperature must be above 0")

    def images(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {"forward": sum(counts.values()), "train": 0}

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Choose k on val."""
        import numpy as np

        from mixmim_bench.predictions import ClassScores

        bank, queries = bench.features(train), bench.features(val)
        votes = self.vote(bank.x, bank.y, queries.x, bench.num_classes)
        accuracy = [float((scores.argmax(1) == queries.y).mean()) for scores in votes]
        best = int(np.argmax(accuracy))
        both_x = np.concatenate([bank.x, queries.x])
        both_y = np.concatenate([bank.y, queries.y])

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split)
            votes = self.vote(both_x, both_y, features.x, bench.num_classes)
            return ClassScores(features.ids, features.y, votes[best])

        return Fitted(
            predict,
            chosen={"k": self.k[best], "val_top1": accuracy[best]},
            arrays={"k": np.array(self.k), "val_top1": np.array(accuracy)},
        )

    def vote(
        self, bank: "np.ndarray", labels: "np.ndarray", queries: "np.ndarray", num_classes: int
    ) -> "list[np.ndarray]":
        """Let the nearest of `bank` (N, d) vote for each query (n, d): scores (n, K) for each k."""
        import numpy as np

        bank, queries = _unit(bank), _unit(queries)
        depth = min(max(self.k), len(bank))
        votes = [np.zeros((len(queries), num_classes), dtype=np.float32) for _ in self.k]
        for start in range(0, len(queries), CHUNK):
            similarity = queries[start : start + CHUNK] @ bank.T
            nearest = np.argpartition(-similarity, depth - 1, axis=1)[:, :depth]
            order = np.argsort(-np.take_along_axis(similarity, nearest, 1), axis=1, kind="stable")
            nearest = np.take_along_axis(nearest, order, 1)
            ordered = np.take_along_axis(similarity, nearest, 1)
            weight = np.exp((ordered - ordered[:, :1]) / self.temperature)  # the nearest weighs 1
            rows = np.arange(start, start + len(nearest))[:, None]
            for scores, k in zip(votes, self.k, strict=True):
                np.add.at(scores, (rows, labels[nearest[:, :k]]), weight[:, :k])
        return votes


def _unit(x: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


PROTOCOL = KNN
