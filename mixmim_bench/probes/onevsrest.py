"""Logistic regression for several labels an item: each class against the rest."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from mixmim_bench.probes.logistic import LogisticPath
from mixmim_bench.probes.rows import stacked


class OneVsRestPath(BaseEstimator):
    """A `LogisticPath` for each class, on the items of which it is known whether they have it.

    Y is (n, K): 1 where an item has the class, 0 where not, -1 where that is left open. A class that all
    items have, or none, says nothing: its scores are 0. `C_path_` (n_C,), `paths_` (K,) after `fit`.
    """

    def __init__(
        self, Cs: Sequence[float] = (1.0,), tol: float = 5e-5, max_iter: int = 10000, device: str = "cpu"
    ) -> None:
        self.Cs = Cs
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: Any, Y: np.ndarray, step: Callable[[int], None] = lambda _: None) -> Self:
        """Fit on features X (n, d), `Stacked` ones too; `step` is told of each class that is done."""
        rows = stacked(X)
        if Y.ndim != 2 or len(Y) != len(rows) or not np.isin(Y, (-1, 0, 1)).all():
            raise ValueError(f"Y must hold 1, 0 and -1 for each of {len(rows)} rows and each class")
        self.C_path_ = np.sort(np.asarray(self.Cs, dtype=np.float64))
        self.n_features_in_ = rows.shape[1]
        self.paths_: list[LogisticPath | None] = []
        for column in Y.T:
            known = np.flatnonzero(column >= 0)
            path = None
            if len(np.unique(column[known])) == 2:
                path = LogisticPath(self.C_path_.tolist(), self.tol, self.max_iter, device=self.device)
                path.fit(rows if len(known) == len(rows) else rows.take(known), column[known])
            self.paths_.append(path)
            step(1)
        return self

    def decision_path(self, X: Any) -> Iterator[np.ndarray]:
        """Give for each C the scores (n, K)."""
        rows = stacked(X)
        of_classes = [None if path is None else path.decision_path(rows) for path in self.paths_]
        for _ in self.C_path_:
            yield np.stack(
                [
                    np.zeros(len(rows)) if decided is None else np.diff(next(decided))[:, 0]
                    for decided in of_classes
                ],
                axis=1,
            )

    @property
    def unsolved_(self) -> list[tuple[float, float]]:
        """The C that were not solved, each with its relative gap, of all classes."""
        return [found for path in self.paths_ if path is not None for found in path.unsolved_]

    @property
    def size_(self) -> int:
        """How many coefficients and intercepts one C has."""
        return len(self.paths_) * (self.n_features_in_ + 1)
