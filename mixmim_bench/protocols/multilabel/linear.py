"""`linear` for multilabel tasks: one-vs-rest logistic regression on frozen features."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.classification.linear import Linear
from mixmim_bench.protocols.contract import Fitted
from mixmim_bench.specs import AUTO

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class LinearMultilabel(Linear):
    """One C for all classes, selected on val by the task's metric; then train and val are refit.

    The values of C, and `patience`, are those of `linear` for classification. Items with an unknown label
    (VOC's difficult objects) are ignored for that class.
    """

    kind: ClassVar[str] = "multilabel"
    version: ClassVar[int] = 2  # 2: among equal values of the metric C by log-loss

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layers != AUTO, "layers must be one layer for multilabel tasks")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select C on val; refit on train and val."""
        import numpy as np

        from mixmim_bench.probes.logistic import noting_unsolved, unsolved_notes
        from mixmim_bench.probes.onevsrest import OneVsRestPath
        from mixmim_bench.probes.path import decide_each
        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.on_train import of_all_rows
        from mixmim_bench.scoring.choosing import Sweep, loss_of_frequencies
        from mixmim_bench.scoring.predictions import ClassScores

        (layer,) = bench.layers(self.layers)
        fit_on, choose_on = bench.features(train, layer), bench.features(val, layer)
        Cs = np.logspace(self.low, self.high, self.steps)
        guess = loss_of_frequencies(choose_on.y, fit_on.y, bench.num_classes)
        on_val = Sweep(bench.metric, choose_on.y, guess, self.patience)

        def monitor(coefs: np.ndarray, intercepts: np.ndarray) -> bool:
            for decided in decide_each(choose_on.x, coefs, intercepts):
                on_val.add(decided)
            step(len(coefs))
            return on_val.ended

        with noting_unsolved():
            with bench.stages.stage("choosing C on val", len(Cs), 0.0) as step:
                sweep = OneVsRestPath(Cs.tolist(), self.tol, self.max_iter, bench.machine.device)
                sweep.fit(fit_on.x, fit_on.y, monitor)
            best = on_val.best()
            final = OneVsRestPath([Cs[best]], self.tol, self.max_iter, bench.machine.device)
            both, y = Stacked([fit_on.x, choose_on.x]), np.concatenate([fit_on.y, choose_on.y])
            final.fit(both, y)

        def scores_of(x: np.ndarray) -> np.ndarray:
            return next(final.decision_path(x))

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split, layer)
            return ClassScores(features.ids, features.y, scores_of(features.x))

        return Fitted(
            predict,
            chosen={"layer": layer, "C": float(Cs[best]), f"val_{bench.metric}": on_val.values[best]},
            arrays={
                "C": sweep.C_path_,
                f"val_{bench.metric}": np.array(on_val.values),
                "val_log_loss": np.array(on_val.losses),
            },
            notes=unsolved_notes([*sweep.unsolved_, *final.unsolved_], self.tol),
            head_params=final.coef_path_[0].size + bench.num_classes,
            head_macs=final.coef_path_[0].size,
            heads={
                "train": (sweep.coef_path_[best], sweep.intercept_path_[best]),
                "both": (final.coef_path_[0], final.intercept_path_[0]),
            },
            train=of_all_rows(bench, both, y, np.concatenate([fit_on.ids, choose_on.ids]), scores_of),
        )


PROTOCOL = LinearMultilabel
