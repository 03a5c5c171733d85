"""Multinomial logistic regression along a path of C, with a certified distance from each optimum."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from mixmim_bench.probes.curvature import Preconditioner
from mixmim_bench.probes.path import LinearPath
from mixmim_bench.probes.rows import Prepared, Standardiser
from mixmim_bench.probes.softmax import Point, SoftmaxLoss


@dataclass(frozen=True)
class Solution:
    """The final point of a problem, and whether it was solved."""

    point: Point
    gap: float
    solved: bool


@contextmanager
def noting_unsolved() -> Iterator[None]:
    """Silence ConvergenceWarning where unsolved values of C are recorded as notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def unsolved_notes(unsolved: Sequence[tuple[float, float]], tol: float) -> tuple[str, ...]:
    """Describe unsolved values of C with their relative gaps; empty if all were solved."""
    each = ", ".join(f"{C:.1e} ({gap:.1e})" for C, gap in unsolved)
    return (f"C (relative gap) not solved to tol {tol}: {each}",) if each else ()


class LogisticPath(LinearPath):
    """Logistic regression with an L2 penalty for each of several C, from the smallest to the largest.

    The objective is that of scikit-learn's LogisticRegression: C * sum of losses + |coef|^2 / 2, without a
    penalty on intercepts, on features that are standardised here (`standardize`). Each is minimised by a
    truncated Newton method (conjugate gradients, preconditioned in the basis of uncorrelated features) that
    is warm-started from the previous solutions, in float32, until the duality gap is at most `tol` of the
    objective; if float32 is not precise enough, it continues in float64. The gap bounds the distance of the
    objective from its minimum, up to the rounding of float32 (1e-6 of the objective).

    X is an array (n, d), or `Stacked` arrays, which may be memory-mapped: large arrays are read block by
    block. After `fit` the attributes `coef_path_` (n_C, K, d) and `intercept_path_` (n_C, K) are those for
    X as it is, with one row for two classes as in scikit-learn; `objective_path_` and `gap_path_` (n_C,)
    are of the standardised problem. `coef_` and `intercept_` are those of `select`, at first the last C.

    Raises ValueError as scikit-learn does, and for values too large to compute with; warns with
    ConvergenceWarning where `max_iter` products with the Hessian were not enough, and lists those C with
    their relative gaps in `unsolved_`.
    """

    def __init__(
        self,
        Cs: Sequence[float] = (1.0,),
        tol: float = 5e-5,
        max_iter: int = 10000,
        standardize: bool = True,
        device: str = "cpu",
    ) -> None:
        self.Cs = Cs
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize
        self.device = device

    def fit(
        self,
        X: Any,
        y: Any,
        coef_init: tuple[np.ndarray, np.ndarray] | None = None,
        monitor: Callable[[np.ndarray, np.ndarray], bool] | None = None,
    ) -> Self:
        """Fit the path.

        Args:
            X: features (n, d), or `Stacked` ones.
            y: labels (n,).
            coef_init: (coef, intercept) to start from.
            monitor: called after each C, in rising order, with its coefficients (1, K, d) and intercepts
                (1, K); where it returns True the path ends.
        """
        self._check_values()
        rows, codes = self._check_data(X, y)
        standardiser = Standardiser(rows, self.standardize)
        self.mean_, self.scale_ = standardiser.mean, standardiser.scale
        prepared = Prepared(rows, standardiser, self.device)
        # of two classes scikit-learn has one row of coefficients: twice the penalty of two opposite ones
        binary = len(self.classes_) == 2
        order = np.argsort(np.asarray(self.Cs, dtype=np.float64), kind="stable")
        self.C_path_ = np.asarray(self.Cs, dtype=np.float64)[order]
        loss = SoftmaxLoss(prepared, codes, len(self.classes_), torch.float32)
        start = None if coef_init is None else self._inwards(loss, *coef_init)
        C = [c / 2 if binary else c for c in self.C_path_.tolist()]

        def ends(solution: Solution, loss: SoftmaxLoss) -> bool:
            return monitor is not None and monitor(*self._outwards(loss, [solution]))

        solutions, last = _path(loss, C, self.tol, self.max_iter, start, ends)
        self.C_path_ = self.C_path_[: len(solutions)]
        self._keep(last, solutions)
        self.n_iter_ = loss.passes + (last.passes if last is not loss else 0)
        return self.select(len(solutions) - 1)

    def select(self, place: int) -> Self:
        """Use the coefficients of one C of `C_path_` for predictions."""
        self.C_ = float(self.C_path_[place])
        return super().select(place)

    def _check_values(self) -> None:
        Cs = np.asarray(self.Cs, dtype=np.float64)
        if Cs.ndim != 1 or not len(Cs) or not (np.isfinite(Cs) & (Cs > 0)).all():
            raise ValueError(f"Cs must be numbers above 0, not {self.Cs!r}")

    def _inwards(self, loss: SoftmaxLoss, coef: np.ndarray, intercept: np.ndarray) -> Tensor:
        """Convert coefficients for the original X to unknowns."""
        if len(coef) == 1:
            coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        intercept = intercept + coef @ self.mean_
        inner = torch.from_numpy(coef * self.scale_).to(loss.basis)
        return torch.cat([inner @ loss.basis, torch.from_numpy(intercept).to(loss.basis)[:, None]], dim=1)

    def _outwards(self, loss: SoftmaxLoss, solutions: Sequence[Solution]) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (m, K, d) and intercepts (m, K) for the original X."""
        basis = loss.basis.double().cpu().numpy()
        coefs, intercepts = [], []
        for solution in solutions:
            unknowns = solution.point.unknowns.double().cpu().numpy()
            coef = unknowns[:, :-1] @ basis.T / self.scale_
            intercept = unknowns[:, -1] - coef @ self.mean_
            if len(self.classes_) == 2:
                coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
            coefs.append(coef)
            intercepts.append(intercept)
        return np.array(coefs), np.array(intercepts)

    def _keep(self, loss: SoftmaxLoss, solutions: Sequence[Solution]) -> None:
        self.coef_path_, self.intercept_path_ = self._outwards(loss, solutions)
        factor = 2.0 if len(self.classes_) == 2 else 1.0
        self.objective_path_ = factor * np.array([s.point.objective for s in solutions])
        self.gap_path_ = factor * np.array([s.gap for s in solutions])
        relative = self.gap_path_ / np.maximum(self.objective_path_, 1e-300)
        self.unsolved_ = [
            (float(c), float(gap))
            for c, gap, solution in zip(self.C_path_, relative, solutions, strict=True)
            if not solution.solved
        ]
        if self.unsolved_:
            warnings.warn(
                f"not solved to tol {self.tol} within max_iter {self.max_iter}: C = "
                + ", ".join(f"{c:.3g} (relative gap {gap:.1e})" for c, gap in self.unsolved_),
                ConvergenceWarning,
                stacklevel=3,
            )


# -- the path --------------------------------------------------------------------------------------


def _path(
    loss: SoftmaxLoss,
    C: Sequence[float],
    tol: float,
    max_iter: int,
    start: Tensor | None,
    ends: Callable[[Solution, SoftmaxLoss], bool],
) -> tuple[list[Solution], SoftmaxLoss]:
    """Solve for rising C until `ends` returns True; returns the solutions and their loss.

    From the first C that float32 cannot solve on, float64 is used.
    """
    solutions: list[Solution] = []
    preconditioner = Preconditioner(loss)
    for c in C:
        solution = _newton(loss, preconditioner, _start(loss, solutions, c, start), c, tol, max_iter)
        if loss.dtype == torch.float32 and not solution.solved:
            wide = SoftmaxLoss(loss.x, loss.y.cpu().numpy(), loss.num_classes, torch.float64)
            # the two bases may differ in signs: come back by way of the features
            turn = loss.basis.double().T @ wide.basis
            for before in solutions:
                before.point.unknowns = _turn(before.point.unknowns, turn)
            start = None if start is None else _turn(start, turn)
            loss, preconditioner = wide, Preconditioner(wide)
            solution = _newton(loss, preconditioner, _turn(solution.point.unknowns, turn), c, tol, max_iter)
        solution.point.probabilities = None
        solutions.append(solution)
        if ends(solution, loss):
            break
    return solutions, loss


def _turn(unknowns: Tensor, turn: Tensor) -> Tensor:
    wide = unknowns.double()
    return torch.cat([wide[:, :-1] @ turn, wide[:, -1:]], dim=1)


def _start(loss: SoftmaxLoss, before: Sequence[Solution], c: float, start: Tensor | None) -> Tensor:
    """Extrapolate the previous solutions linearly in log C."""
    if not before:
        return loss.origin() if start is None else start
    last = before[-1].point
    if len(before) == 1 or before[-2].point.C == last.C:
        return last.unknowns.clone()
    slope = (last.unknowns - before[-2].point.unknowns) / math.log(last.C / before[-2].point.C)
    return last.unknowns + slope * math.log(c / last.C)


def _newton(
    loss: SoftmaxLoss, preconditioner: Preconditioner, unknowns: Tensor, C: float, tol: float, max_iter: int
) -> Solution:
    """Minimise by Newton's method with truncated conjugate gradients and a backtracking line search."""
    point = loss.evaluate(unknowns, C)
    left, can_settle = max_iter, True
    while True:
        gap, estimate = loss.bound(point), loss.estimate(point)
        if gap <= tol * point.objective:
            return Solution(point, gap, solved=True)
        if left <= 0:
            return Solution(point, gap, solved=False)
        if can_settle and estimate <= tol * point.objective and (settled := loss.settle(point)) is not None:
            before, point = point, loss.evaluate(settled, C)  # only the intercepts were in the way
            can_settle = loss.bound(point) < 0.5 * gap  # else rounding is, of what is kept
            if loss.bound(point) >= gap:
                point = before
            continue
        # a residual whose square is a small part of what the gap may be is as good as none
        small = max(0.02 * estimate, 0.3 * tol * point.objective)
        if estimate <= tol * point.objective:
            small = 0.001 * estimate
        preconditioner.update(point)
        most = int(min(left, preconditioner.allowance))
        direction, used = _conjugate_gradient(loss, preconditioner, point, small, most)
        preconditioner.spent += used
        left -= used
        slope, step = _dot(direction, point.gradient), 1.0
        while True:
            trial = loss.evaluate(point.unknowns + step * direction, C)
            rounding = 1e-7 * abs(point.objective) if loss.dtype == torch.float32 else 0.0
            if trial.objective <= point.objective + 1e-4 * step * slope + rounding:
                break
            step /= 2
            if step < 1e-6:
                return Solution(point, gap, solved=False)
        if trial.objective >= point.objective and loss.bound(trial) >= gap:
            return Solution(point, gap, solved=False)
        point = trial


def _conjugate_gradient(
    loss: SoftmaxLoss, preconditioner: Preconditioner, point: Point, small: float, most: int
) -> tuple[Tensor, int]:
    """Solve Hessian @ direction = -gradient until the squared residual is at most `small`."""
    direction = torch.zeros_like(point.unknowns)
    residual = -point.gradient
    search = preconditioner(point, residual)
    size = first = _dot(residual, search)
    for used in range(1, most + 1):
        product = loss.curve(point, search)
        curvature = _dot(search, product)
        if curvature <= 0:  # rounding: the Hessian is positive
            return direction if used > 1 else search, used
        direction += size / curvature * search
        residual -= size / curvature * product
        conditioned = preconditioner(point, residual)
        size, before = _dot(residual, conditioned), size
        if _dot(residual, residual) <= small or size <= 0.0025 * first:
            return direction, used
        search = conditioned + size / before * search
    return direction, most


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.flatten(), b.flatten()))
