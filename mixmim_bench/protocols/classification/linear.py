"""`linear` for classification: multinomial logistic regression on frozen, pooled features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.contract import Fitted, FrozenProtocol

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.features.extract import Features
    from mixmim_bench.protocols.workbench import Workbench

RIDGE = tuple(10.0**exponent for exponent in range(-5, 3))  # of the penalties that layers are ranked with


@dataclass(frozen=True, kw_only=True)
class Linear(FrozenProtocol):
    """Logistic regression on standardised features; C is selected on val, then train and val are refit.

    `steps` values of C (the inverse of the L2 penalty) from 10^low to 10^high: 45 from -6 to 5 are those of
    DINOv2's evaluation (arXiv 2304.07193). From the smallest on, each is solved to a relative `tol` of its
    objective, until `patience` values in a row improve neither metric nor log-loss on val (0: all are
    solved), since far too large values take by far the longest. `mixmim_bench.scoring.choosing` describes the
    selection. C is not rescaled for the refit on more images, as the prior on the coefficients is the same;
    in simulation neither way is better (benchmarks/README.md). `layers`: a layer of
    `mixmim_bench.features.layers`, or 'auto' to select one on val by closed-form ridge regression before the
    sweep.
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "linear probe"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 4  # 4: C by log-loss among ties; patience waits for the first plateau to end
    stochastic: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    low: float = -6.0
    high: float = 5.0
    steps: int = 45
    max_iter: int = 10000
    tol: float = 5e-5
    patience: int = 8
    layers: str = "own"

    def __post_init__(self) -> None:
        require(self.low <= self.high, "low must not be above high")
        require(self.steps >= 1 and self.max_iter >= 1, "steps and max_iter must be at least 1")
        require(self.tol > 0.0, "tol must be above 0")
        require(self.patience >= 0, "patience must be at least 0")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select the layer and C on val; refit on train and val."""
        import numpy as np

        from mixmim_bench.probes.path import decide_each
        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.on_train import of_all_rows
        from mixmim_bench.scoring.choosing import Sweep, loss_of_frequencies
        from mixmim_bench.scoring.predictions import ClassScores, of_all_classes

        layer, fit_on, choose_on, tried = self._choose_layer(bench, train, val)
        Cs = np.logspace(self.low, self.high, self.steps)
        classes = np.unique(fit_on.y)
        guess = loss_of_frequencies(choose_on.y, fit_on.y, bench.num_classes)
        on_val = Sweep(bench.metric, choose_on.y, guess, self.patience)

        def monitor(coefs: np.ndarray, intercepts: np.ndarray) -> bool:
            for decided in decide_each(choose_on.x, coefs, intercepts):
                on_val.add(of_all_classes(decided, classes, bench.num_classes))
            step(len(coefs))
            return on_val.ended

        with bench.stages.stage("choosing C on val", len(Cs), 0.0) as step:
            sweep, notes = self._solve(bench, Cs, fit_on.x, fit_on.y, monitor=monitor)
        best = on_val.best()
        both, y = Stacked([fit_on.x, choose_on.x]), np.concatenate([fit_on.y, choose_on.y])
        same_classes = len(np.unique(y)) == len(sweep.classes_)
        start = (sweep.coef_path_[best], sweep.intercept_path_[best]) if same_classes else None
        final, more = self._solve(bench, Cs[best : best + 1], both, y, coef_init=start)

        def scores_of(x: Any) -> np.ndarray:
            return of_all_classes(final.predict_log_proba(x), final.classes_, bench.num_classes)

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split, layer)
            return ClassScores(features.ids, features.y, scores_of(features.x))

        return Fitted(
            predict,
            chosen={
                "layer": layer,
                "C": float(Cs[best]),
                f"val_{bench.metric}": on_val.values[best],
                **tried,
            },
            arrays={
                "C": sweep.C_path_,
                f"val_{bench.metric}": np.array(on_val.values),
                "val_log_loss": np.array(on_val.losses),
                "objective": sweep.objective_path_,
                "gap": sweep.gap_path_,
            },
            notes=(*notes, *more),
            head_params=final.coef_.size + final.intercept_.size,
            head_macs=final.coef_.size,
            heads={
                "train": self._head(sweep.coef_path_[best], sweep.intercept_path_[best], sweep, bench),
                "both": self._head(final.coef_, final.intercept_, final, bench),
            },
            train=of_all_rows(bench, both, y, np.concatenate([fit_on.ids, choose_on.ids]), scores_of),
        )

    def _head(
        self, coef: "np.ndarray", intercept: "np.ndarray", path: Any, bench: "Workbench"
    ) -> "tuple[np.ndarray, np.ndarray]":
        from mixmim_bench.protocols.tuning import head_of_classes

        return head_of_classes(coef, intercept, path.classes_, bench.num_classes)

    def _choose_layer(
        self, bench: "Workbench", train: "Split", val: "Split"
    ) -> "tuple[str, Features, Features, dict[str, float]]":
        """Rank layers by ridge regression; returns the best, its features, and each one's score on val."""
        from mixmim_bench.probes.ridge import RidgePath
        from mixmim_bench.protocols.classification import score_path

        layers = bench.layers(self.layers)
        fit_on = bench.features_of_layers(train, layers)
        choose_on = bench.features_of_layers(val, layers)
        scores = {}
        for layer in layers if len(layers) > 1 else ():
            ridge = RidgePath(RIDGE, device=bench.machine.device).fit(fit_on[layer].x, fit_on[layer].y)
            scores[layer] = max(score_path(bench, ridge, choose_on[layer]))
        best = max(scores, key=lambda layer: scores[layer]) if scores else layers[0]
        tried = {f"ridge_val_{bench.metric} {layer}": score for layer, score in scores.items()}
        return best, fit_on[best], choose_on[best], tried

    def _solve(
        self,
        bench: "Workbench",
        Cs: "np.ndarray",
        x: Any,
        y: "np.ndarray",
        coef_init: Any = None,
        monitor: Any = None,
    ) -> "tuple[Any, tuple[str, ...]]":
        """Fit a path of C; returns it with notes on unsolved values."""
        from mixmim_bench.probes.logistic import LogisticPath, noting_unsolved, unsolved_notes

        path = LogisticPath(Cs.tolist(), tol=self.tol, max_iter=self.max_iter, device=bench.machine.device)
        with noting_unsolved():
            path.fit(x, y, coef_init=coef_init, monitor=monitor)
        return path, unsolved_notes(path.unsolved_, self.tol)


PROTOCOL = Linear
