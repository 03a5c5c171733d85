"""One-vs-rest logistic regression for several labels per item."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from mixmim_bench.probes.logistic import LogisticPath
from mixmim_bench.probes.path import decide_each
from mixmim_bench.probes.rows import stacked

TOGETHER = 4  # values of C that are solved for one class before the next one


class OneVsRestPath(BaseEstimator):
    """Logistic regression of each class for several C, on the items with known labels.

    Y is (n, K): 1 if an item has the class, 0 if not, -1 if unknown. Classes that all items have, or none,
    get scores of 0. After `fit`: `C_path_` (n_C,), `coef_path_` (n_C, K, d), `intercept_path_` (n_C, K), and
    `unsolved_`, the unsolved C with their gaps.
    """

    def __init__(
        self, Cs: Sequence[float] = (1.0,), tol: float = 5e-5, max_iter: int = 10000, device: str = "cpu"
    ) -> None:
        self.Cs = Cs
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(
        self, X: Any, Y: np.ndarray, monitor: Callable[[np.ndarray, np.ndarray], bool] | None = None
    ) -> Self:
        """Fit one path per class.

        Args:
            X: features (n, d), or `Stacked` ones.
            Y: (n, K) of 1, 0 and -1 for unknown.
            monitor: called after every few C, in rising order, with their coefficients (m, K, d) and
                intercepts (m, K); where it returns True the path ends.
        """
        rows = stacked(X)
        if Y.ndim != 2 or len(Y) != len(rows) or not np.isin(Y, (-1, 0, 1)).all():
            raise ValueError(f"Y must hold 1, 0 and -1 for each of {len(rows)} rows and each class")
        Cs = np.sort(np.asarray(self.Cs, dtype=np.float64))
        self.unsolved_: list[tuple[float, float]] = []
        starts: list[Any] = [None] * Y.shape[1]
        coefs = np.zeros((len(Cs), Y.shape[1], rows.shape[1]))
        intercepts = np.zeros((len(Cs), Y.shape[1]))
        done = 0
        while done < len(Cs):
            here = slice(done, done + TOGETHER)
            for k, column in enumerate(Y.T):
                known = np.flatnonzero(column >= 0)
                if len(np.unique(column[known])) < 2:
                    continue
                path = LogisticPath(Cs[here].tolist(), self.tol, self.max_iter, device=self.device)
                own = rows if len(known) == len(rows) else rows.take(known)
                path.fit(own, column[known], coef_init=starts[k])
                coefs[here, k], intercepts[here, k] = path.coef_path_[:, 0], path.intercept_path_[:, 0]
                starts[k] = (path.coef_path_[-1], path.intercept_path_[-1])
                self.unsolved_ += path.unsolved_
            done = min(done + TOGETHER, len(Cs))
            if monitor is not None and monitor(coefs[here], intercepts[here]):
                break
        self.C_path_ = Cs[:done]
        self.coef_path_, self.intercept_path_ = coefs[:done], intercepts[:done]
        return self

    def decision_path(self, X: Any) -> Iterator[np.ndarray]:
        """Yield the scores (n, K) for each C."""
        return decide_each(X, self.coef_path_, self.intercept_path_)
