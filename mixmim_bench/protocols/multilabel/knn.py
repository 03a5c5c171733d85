"""`knn` for multilabel tasks: the weighted share of the nearest neighbours with a class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.classification.knn import KNN
from mixmim_bench.protocols.contract import Fitted
from mixmim_bench.specs import AUTO

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class KNNMultilabel(KNN):
    """The weighted vote of `knn` for classification, per class; k is selected on val.

    Neighbours with an unknown label of a class do not vote on it.
    """

    kind: ClassVar[str] = "multilabel"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layers != AUTO, "layers must be one layer for multilabel tasks")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select k on val; then train and val vote."""
        import numpy as np

        from mixmim_bench.probes.neighbours import nearest, shares
        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.on_train import of_neighbours
        from mixmim_bench.scoring.metrics import value
        from mixmim_bench.scoring.predictions import ClassScores

        (layer,) = bench.layers(self.layers)
        bank, asked = bench.features(train, layer), bench.features(val, layer)
        cosines, rows = nearest(bank.x, asked.x, max(self.k), bench.machine.device)
        on_val = [
            value(bench.metric, asked.y, shares(cosines, bank.y[rows], k, self.temperature)) for k in self.k
        ]
        k = self.k[int(np.argmax(on_val))]
        both, labels = Stacked([bank.x, asked.x]), np.concatenate([bank.y, asked.y])
        ids = np.concatenate([bank.ids, asked.ids])

        def votes(cosines: np.ndarray, rows: np.ndarray) -> np.ndarray:
            return shares(cosines, labels[rows], k, self.temperature)

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split, layer)
            found = nearest(both, features.x, k, bench.machine.device)
            return ClassScores(features.ids, features.y, votes(*found))

        return Fitted(
            predict,
            chosen={"layer": layer, "k": k, f"val_{bench.metric}": max(on_val)},
            arrays={"k": np.array(self.k), f"val_{bench.metric}": np.array(on_val)},
            head_params=both.shape[0] * both.shape[1],
            head_macs=both.shape[0] * both.shape[1],
            train=of_neighbours(bench, both, labels, ids, k, votes),
        )


PROTOCOL = KNNMultilabel
