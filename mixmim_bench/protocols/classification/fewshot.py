"""`fewshot` for classification: probes trained on a few images per class."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.contract import Fitted, FrozenProtocol
from mixmim_bench.specs import AUTO

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.features.extract import Features
    from mixmim_bench.protocols.workbench import Workbench

HEADLINE = 10  # shots of the score in tables, as in big_vision's few-shot evaluation
HEADS = ("ridge", "logistic")


@dataclass(frozen=True, kw_only=True)
class FewShot(FrozenProtocol):
    """Ridge and logistic regression on `shots` images of each class, `draws` times.

    A draw orders the images of each class and takes the first ones, so more shots include fewer. The penalty
    of each head and number of shots is selected on val, averaged over the draws; train and val are not
    joined, as that would add shots. Tables show the score of 10 shots (or the most below) with the better
    head on val; the record holds the others. The score on train is that of the drawn images, averaged over
    the draws; ridge regression has no log-loss.
    """

    name: ClassVar[str] = "fewshot"
    title: ClassVar[str] = "few-shot probe"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 2  # 2: directions of tiny variance count where images are few
    stochastic: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    shots: tuple[int, ...] = (1, 2, 5, 10, 25)
    draws: int = 5
    C: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    alpha: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    layers: str = "own"

    def __post_init__(self) -> None:
        require(len(self.shots) > 0 and min(self.shots) >= 1, "shots must be whole numbers of at least 1")
        require(self.draws >= 1, "draws must be at least 1")
        for name in ("C", "alpha"):
            values = getattr(self, name)
            require(len(values) > 0 and min(values) > 0.0, f"{name} must be numbers above 0")
        require(self.layers != AUTO, "layers must be one layer: a few images cannot choose among them")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select the penalty of each head and number of shots on val."""
        import numpy as np

        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.classification import score_path
        from mixmim_bench.protocols.on_train import mean_of_draws, of_some_rows
        from mixmim_bench.scoring.predictions import DrawScores, of_all_classes

        (layer,) = bench.layers(self.layers)
        of_train, of_val = bench.features(train, layer), bench.features(val, layer)
        orders = [_order(of_train.y, bench.seed, draw) for draw in range(self.draws)]
        fitted: dict[tuple[str, int], list[Any]] = {}
        chosen: dict[str, Any] = {"layer": layer}
        on_val: dict[tuple[str, int], float] = {}
        with bench.stages.stage("few-shot probes", len(self.shots) * len(HEADS), 0.0) as step:
            for shots in sorted(set(self.shots)):
                for head in HEADS:
                    paths = [
                        self._path(bench, head, of_train, order[order_rank < shots])
                        for order, order_rank in orders
                    ]
                    scores = np.mean([score_path(bench, path, of_val) for path in paths], axis=0)
                    best = int(np.argmax(scores))
                    penalty = (sorted(self.C) if head == "logistic" else self.alpha)[best]
                    chosen[f"{head} {shots}-shot"] = penalty
                    on_val[head, shots] = float(scores[best])
                    fitted[head, shots] = [path.select(best) for path in paths]
                    step(1)
        shown = max((s for s in self.shots if s <= HEADLINE), default=min(self.shots))
        first = max(HEADS, key=lambda head: on_val[head, shown])
        chosen |= {"head": first, "shots": shown, f"val_{bench.metric}": on_val[first, shown]}

        def scores_of(path: Any, x: Any) -> np.ndarray:
            return of_all_classes(path.log_odds(x), path.classes_, bench.num_classes)

        def predict(split: "Split") -> DrawScores:
            features = bench.features(split, layer)
            scores = {key: [scores_of(p, features.x) for p in paths] for key, paths in fitted.items()}
            others = {f"{head} {shots}-shot": draws for (head, shots), draws in scores.items()}
            return DrawScores(features.ids, features.y, scores[first, shown], others)

        rows, logits = Stacked([of_train.x]), first == "logistic"
        on_train = [
            of_some_rows(bench, rows, of_train.y, order[rank < shown], partial(scores_of, path), logits)
            for path, (order, rank) in zip(fitted[first, shown], orders, strict=True)
        ]
        most = max(self.shots)
        smallest = int(np.bincount(of_train.y, minlength=bench.num_classes).min())
        return Fitted(
            predict,
            chosen=chosen,
            head_params=fitted[first, shown][0].coef_.size + fitted[first, shown][0].intercept_.size,
            head_macs=fitted[first, shown][0].coef_.size,
            notes=(
                f"the smallest class of train has {smallest} images: fewer than the {most} shots requested",
            )
            if smallest < most
            else (),
            train=mean_of_draws(on_train),
        )

    def _path(self, bench: "Workbench", head: str, features: "Features", rows: "np.ndarray") -> Any:
        """Fit a head with all its penalties on some rows of train."""
        from mixmim_bench.probes.logistic import LogisticPath, noting_unsolved
        from mixmim_bench.probes.ridge import RidgePath
        from mixmim_bench.probes.rows import Stacked

        x, y = Stacked([features.x]).take(rows), features.y[rows]
        if head == "ridge":
            return RidgePath(self.alpha, device=bench.machine.device).fit(x, y)
        path = LogisticPath(sorted(self.C), device=bench.machine.device)
        with noting_unsolved():
            path.fit(x, y)
        note = "few-shot probes: not every C was solved to its tolerance"
        if path.unsolved_:
            bench.note(note)
        return path


def _order(y: "np.ndarray", seed: int, draw: int) -> "tuple[np.ndarray, np.ndarray]":
    """Shuffle rows; returns the rows (n,) and the rank of each within its class (n,)."""
    import numpy as np

    shuffled = np.random.default_rng((seed, draw)).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    labels = y[by_class]
    starts = np.searchsorted(labels, labels)
    return by_class, np.arange(len(y)) - starts


PROTOCOL = FewShot
