"""Ridge regression on class indicators, for a path of penalties from one decomposition."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from mixmim_bench.probes.path import LinearPath
from mixmim_bench.probes.rows import Prepared, Standardiser, uncorrelated


class RidgePath(LinearPath):
    """Least squares on one-hot labels with an L2 penalty, for each alpha, on standardised features.

    The objective is that of scikit-learn's Ridge for targets 0 and 1: the summed squared error plus
    `n * alpha * |coef|^2`. One eigendecomposition yields the solutions for all alphas, so ranking layers and
    poolings costs almost nothing. X is as in LogisticPath.
    """

    def __init__(self, alphas: Sequence[float] = (1e-3,), device: str = "cpu") -> None:
        self.alphas = alphas
        self.device = device

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the path on features X (n, d) and labels y (n,)."""
        alphas = np.asarray(self.alphas, dtype=np.float64)
        if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas) & (alphas > 0)).all():
            raise ValueError(f"alphas must be numbers above 0, not {self.alphas!r}")
        rows, codes = self._check_data(X, y)
        standardiser = Standardiser(rows)
        prepared = Prepared(rows, standardiser, self.device)
        basis, variances = uncorrelated(prepared)
        targets = np.eye(len(self.classes_), dtype=np.float32)[codes]
        mean = targets.mean(0, dtype=np.float64)
        products = torch.zeros(rows.shape[1], len(mean), dtype=torch.float64, device=basis.device)
        for start, block in prepared.blocks():
            centred = torch.from_numpy(targets[start : start + len(block)] - mean).float().to(block.device)
            products += (block.T @ centred).double()
        along = (basis.T @ products / len(rows)).cpu().numpy()
        spread, basis_ = variances.cpu().numpy()[:, None], basis.cpu().numpy()
        inner = [basis_ @ (along / (spread + alpha)) for alpha in alphas]
        self.coef_path_ = np.array([coef.T / standardiser.scale for coef in inner])
        self.intercept_path_ = mean - self.coef_path_ @ standardiser.mean
        if len(self.classes_) == 2:
            self.coef_path_ = self.coef_path_[:, 1:] - self.coef_path_[:, :1]
            self.intercept_path_ = self.intercept_path_[:, 1:] - self.intercept_path_[:, :1]
        return self.select(len(alphas) - 1)
