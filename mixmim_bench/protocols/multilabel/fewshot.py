"""`fewshot` for multilabel tasks: one-vs-rest probes trained on a few images of each class."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.classification.fewshot import HEADLINE
from mixmim_bench.protocols.contract import Fitted, FrozenProtocol
from mixmim_bench.specs import AUTO

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.features.extract import Features
    from mixmim_bench.protocols.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class FewShotMultilabel(FrozenProtocol):
    """One-vs-rest logistic regression on about `shots` images of each class, `draws` times.

    A draw takes images in random order that show a class with fewer than `shots` images so far, rare classes
    first, so that each class has `shots` images at least (all, where it has fewer) and more shots include
    fewer. C is selected on val for each number of shots, averaged over the draws; train and val are not
    joined. Tables show the score of 10 shots (or the most below). The score on train is that of the drawn
    images, averaged over the draws.
    """

    name: ClassVar[str] = "fewshot"
    title: ClassVar[str] = "few-shot probe"
    kind: ClassVar[str] = "multilabel"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    shots: tuple[int, ...] = (1, 2, 5, 10, 25)
    draws: int = 5
    C: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    layers: str = "own"

    def __post_init__(self) -> None:
        require(len(self.shots) > 0 and min(self.shots) >= 1, "shots must be whole numbers of at least 1")
        require(self.draws >= 1, "draws must be at least 1")
        require(len(self.C) > 0 and min(self.C) > 0.0, "C must be numbers above 0")
        require(self.layers != AUTO, "layers must be one layer: a few images cannot choose among them")

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Select C for each number of shots on val."""
        import numpy as np

        from mixmim_bench.probes.path import decide_each
        from mixmim_bench.probes.rows import Stacked
        from mixmim_bench.protocols.on_train import mean_of_draws, of_some_rows
        from mixmim_bench.scoring.metrics import value
        from mixmim_bench.scoring.predictions import DrawScores

        (layer,) = bench.layers(self.layers)
        of_train, of_val = bench.features(train, layer), bench.features(val, layer)
        draws = [draw_shots(of_train.y, sorted(set(self.shots)), bench.seed, d) for d in range(self.draws)]
        Cs = sorted(self.C)
        chosen: dict[str, Any] = {"layer": layer}
        on_val: dict[int, float] = {}
        fitted: dict[int, tuple[int, list[Any]]] = {}
        with bench.stages.stage("few-shot probes", len(set(self.shots)), 0.0) as step:
            for shots in sorted(set(self.shots)):
                paths = [self._path(bench, of_train, draw[shots]) for draw in draws]
                scores = np.mean(
                    [[value(bench.metric, of_val.y, d) for d in p.decision_path(of_val.x)] for p in paths], 0
                )
                best = int(np.argmax(scores))
                chosen[f"logistic {shots}-shot"], on_val[shots] = Cs[best], float(scores[best])
                fitted[shots] = best, paths
                step(1)
        shown = max((s for s in self.shots if s <= HEADLINE), default=min(self.shots))
        chosen |= {"shots": shown, f"val_{bench.metric}": on_val[shown]}

        def predict(split: "Split") -> DrawScores:
            features = bench.features(split, layer)
            scores = {
                shots: [list(path.decision_path(features.x))[best] for path in paths]
                for shots, (best, paths) in fitted.items()
            }
            others = {f"logistic {shots}-shot": draws for shots, draws in scores.items()}
            return DrawScores(features.ids, features.y, scores[shown], others)

        smallest, most = int((of_train.y == 1).sum(0).min()), max(self.shots)
        best, paths = fitted[shown]
        coef = paths[0].coef_path_[0]

        def scores_of(path: Any, x: np.ndarray) -> np.ndarray:
            one = slice(best, best + 1)
            return next(decide_each(x, path.coef_path_[one], path.intercept_path_[one]))

        rows = Stacked([of_train.x])
        on_train = [
            of_some_rows(bench, rows, of_train.y, draw[shown], partial(scores_of, path))
            for path, draw in zip(paths, draws, strict=True)
        ]
        return Fitted(
            predict,
            chosen=chosen,
            head_params=coef.size + len(coef),
            head_macs=coef.size,
            notes=(
                f"the smallest class of train has {smallest} images: fewer than the {most} shots requested",
            )
            if smallest < most
            else (),
            train=mean_of_draws(on_train),
        )

    def _path(self, bench: "Workbench", features: "Features", rows: "np.ndarray") -> Any:
        """Fit all values of C on some rows of train."""
        from mixmim_bench.probes.logistic import noting_unsolved
        from mixmim_bench.probes.onevsrest import OneVsRestPath
        from mixmim_bench.probes.rows import Stacked

        path = OneVsRestPath(sorted(self.C), device=bench.machine.device)
        with noting_unsolved():
            path.fit(Stacked([features.x]).take(rows), features.y[rows])
        if path.unsolved_:
            bench.note("few-shot probes: not every C was solved to its tolerance")
        return path


def draw_shots(y: "np.ndarray", shots: list[int], seed: int, draw: int) -> "dict[int, np.ndarray]":
    """Draw rows for each number of shots: shots -> rows, those of fewer shots first.

    y: labels (n, K), 1 where an image shows a class.
    """
    import numpy as np

    order = np.random.default_rng((seed, draw)).permutation(len(y))
    shows = y[order] == 1
    rare_first = np.argsort(shows.sum(0), kind="stable")
    taken = np.zeros(len(y), dtype=bool)
    rows: list[int] = []
    drawn = {}
    for count in shots:
        for label in rare_first:
            lacking = count - int((shows[:, label] & taken).sum())
            more = np.flatnonzero(shows[:, label] & ~taken)[: max(lacking, 0)]
            taken[more] = True
            rows += order[more].tolist()
        drawn[count] = np.array(rows)
    return drawn


PROTOCOL = FewShotMultilabel
