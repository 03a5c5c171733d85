"""`knn` for classification: weighted nearest neighbours of frozen, pooled features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.contract import Fitted, FrozenProtocol

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class KNN(FrozenProtocol):
    """Vote of the k nearest neighbours by cosine similarity, weighted by exp(similarity / temperature).

    DINO's evaluation (arXiv 2104.14294); k is selected on val, and train and val vote on test. `layers` is as
    in `linear`. The score on train leaves one out: an image does not vote on itself. It is that of 10,000
    images at most, and votes have no log-loss.
    """

    name: ClassVar[str] = "knn"
    title: ClassVar[str] = "k nearest neighbours"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    layers: str = "own"

    def __post_init__(self) -> None:
        require(len(self.k) > 0 and min(self.k) >= 1, "k must be whole numbers of at least 1")
        require(self.temperature > 0.0, "temperature must be above 0")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select the layer and k on val; then train and val vote."""
        import numpy as np

        from mixmim_bench.probes.neighbours import nearest, vote
        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.on_train import of_neighbours
        from mixmim_bench.scoring.metrics import value
        from mixmim_bench.scoring.predictions import ClassScores

        layers = bench.layers(self.layers)
        banks = bench.features_of_layers(train, layers)
        queries = bench.features_of_layers(val, layers)
        tried = []
        for layer in layers:
            bank, asked = banks[layer], queries[layer]
            cosines, rows = nearest(bank.x, asked.x, max(self.k), bench.machine.device)
            for k in self.k:
                scores = vote(cosines, bank.y[rows], k, self.temperature, bench.num_classes)
                tried.append((value(bench.metric, asked.y, scores), layer, k))
        best, layer, k = max(tried, key=lambda each: each[0])  # the first of those that are best
        both = Stacked([banks[layer].x, queries[layer].x])
        labels = np.concatenate([banks[layer].y, queries[layer].y])

        ids = np.concatenate([banks[layer].ids, queries[layer].ids])

        def votes(cosines: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return vote(cosines, labels[rows], k, self.temperature, bench.num_classes)

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split, layer)
            found = nearest(both, features.x, k, bench.machine.device)
            return ClassScores(features.ids, features.y, votes(*found))

        return Fitted(
            predict,
            chosen={"layer": layer, "k": k, f"val_{bench.metric}": best},
            arrays={
                "layer": np.array([layer for _, layer, _ in tried]),
                "k": np.array([k for _, _, k in tried]),
                f"val_{bench.metric}": np.array([score for score, _, _ in tried]),
            },
            head_params=both.shape[0] * both.shape[1],
            head_macs=both.shape[0] * both.shape[1],
            train=of_neighbours(bench, both, labels, ids, k, votes),
        )


PROTOCOL = KNN
