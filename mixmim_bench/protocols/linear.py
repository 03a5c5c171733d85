"""`linear` for classification: multinomial logistic regression on frozen, pooled features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.protocols import Fitted, require

if TYPE_CHECKING:
    from mixmim_bench.bench import Split, Workbench


@dataclass(frozen=True, kw_only=True)
class Linear:
    """L-BFGS on standardised features; C is chosen on val, then train and val are fitted together.

    `steps` values of C (the inverse of the L2 penalty) from 10^low to 10^high, as DINOv2's evaluation
    does on 45 from -6 to 5 (arXiv 2304.07193).
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "linear probe"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    low: float = -6.0
    high: float = 2.0
    steps: int = 17
    max_iter: int = 1000
    tol: float = 1e-4

    def __post_init__(self) -> None:
        require(self.low <= self.high, "low must not be above high")
        require(self.steps >= 1 and self.max_iter >= 1, "steps and max_iter must be at least 1")
        require(self.tol > 0.0, "tol must be above 0")

    def images(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {"forward": sum(counts.values()), "train": 0}

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Choose C on val, starting each fit from the last one; refit on train and val."""
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        from mixmim_bench.predictions import ClassScores

        fit_on, choose_on = bench.features(train), bench.features(val)
        grid = np.logspace(self.low, self.high, self.steps)
        scaler = StandardScaler().fit(fit_on.x)
        x, x_val = scaler.transform(fit_on.x), scaler.transform(choose_on.x)
        model = LogisticRegression(max_iter=self.max_iter, tol=self.tol, warm_start=True)
        accuracy = []
        with bench.stages.stage("choosing C on val", len(grid), 0.0) as step:
            for c in grid:
                accuracy.append(model.set_params(C=c).fit(x, fit_on.y).score(x_val, choose_on.y))
                step(1)
        best = int(np.argmax(accuracy))  # the smallest C of those that are best

        both = np.concatenate([fit_on.x, choose_on.x])
        scaler = StandardScaler().fit(both)
        final = LogisticRegression(C=grid[best], max_iter=self.max_iter, tol=self.tol)
        final.fit(scaler.transform(both), np.concatenate([fit_on.y, choose_on.y]))

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split)
            scores = np.full((len(features), bench.num_classes), -np.inf, dtype=np.float32)
            scores[:, final.classes_] = final.predict_log_proba(scaler.transform(features.x))
            return ClassScores(features.ids, features.y, scores)

        return Fitted(
            predict,
            chosen={"C": float(grid[best]), "val_top1": float(accuracy[best])},
            arrays={"C": grid, "val_top1": np.array(accuracy)},
            notes=(f"L-BFGS stopped at max_iter {self.max_iter}",)
            if final.n_iter_.max() >= self.max_iter
            else (),
        )


PROTOCOL = Linear
