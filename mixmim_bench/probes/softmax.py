"""The objective of multinomial logistic regression, its gradient and its curvature.

The unknowns are a tensor (K, r + 1) with one row per class: coordinates in a basis in which the features are
nearly uncorrelated, then the intercept. The objective is scikit-learn's: C times the sum of the losses, plus
half the squared norm of the coefficients without intercepts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixmim_bench.probes.rows import Prepared, uncorrelated

KEPT_NUMBERS = 2**27  # probabilities (n, K) that are kept between passes; more are recomputed
NEGLIGIBLE = 1e-30  # probabilities; processors are slow with subnormal numbers
SETTLING_STEPS = 8  # Newton steps for the intercepts alone


@dataclass
class Point:
    """The objective and its derivatives at one point."""

    unknowns: Tensor  # (K, r + 1)
    C: float
    objective: float
    loss: float  # the summed loss, without C
    gradient: Tensor  # (K, r + 1)
    weight: Tensor  # (K,) float64: mean of p (1 - p)
    probabilities: dict[int, Tensor] | None  # by first row of the block: (m, K)


class SoftmaxLoss:
    """Evaluates the objective and its curvature in passes over the rows."""

    def __init__(self, x: Prepared, y: np.ndarray, num_classes: int, dtype: torch.dtype) -> None:
        self.x = x
        self.n = x.shape[0]
        self.num_classes = num_classes
        self.dtype = dtype
        self.y = torch.from_numpy(y).to(x.device)
        self.counts = torch.bincount(self.y, minlength=num_classes).double()  # (K,)
        self.passes = 0
        self.most_kept = _most_kept(x.device)
        basis, self.variances = uncorrelated(x)
        self.basis = basis.to(dtype)  # (d, r), orthonormal columns
        self.rotated: list[tuple[int, Tensor]] | None = None
        if x.kept is not None:
            # rotated in float64, so that directions of small variance keep their digits
            self.rotated = [(start, (block.double() @ basis).to(dtype)) for start, block in x.kept]
        self.class_sums = self._class_sums()  # (K, r) float64

    @property
    def size(self) -> tuple[int, int]:
        """The shape of the unknowns of a problem."""
        return self.num_classes, len(self.variances) + 1

    def origin(self) -> Tensor:
        """Return the starting point: zero coefficients, and intercepts that yield the class frequencies."""
        start = torch.zeros(self.size, dtype=self.dtype, device=self.x.device)
        start[:, -1] = self.counts.log()
        start[:, -1] -= start[:, -1].mean()
        return start

    def evaluate(self, unknowns: Tensor, C: float) -> Point:
        """Evaluate the objective and its gradient at a point, in one pass."""
        kept: dict[int, Tensor] | None = {} if self.n * self.num_classes <= self.most_kept else None
        sums = torch.zeros(self.num_classes, dtype=torch.float64, device=self.x.device)
        losses = torch.zeros((), dtype=torch.float64, device=self.x.device)

        def residuals(start: int, logits: Tensor) -> Tensor:
            of_block, p, residual = _softmax(logits, self.y[start : start + len(logits)])
            losses.add_(of_block)
            # 1 - p of the label is not a difference of near numbers: it is what the others have
            sums.add_((p * torch.where(residual < 0, -residual, 1 - p)).sum(0, dtype=torch.float64))
            if kept is not None:
                kept[start] = p
            return residual

        gradient = C * self._pass(unknowns, residuals)
        gradient[:, :-1] += unknowns[:, :-1]
        loss = float(losses)  # the one synchronisation of a pass
        objective = C * loss + 0.5 * _squared_norm(unknowns[:, :-1])
        return Point(unknowns, C, objective, loss, gradient, sums / self.n, kept)

    def settle(self, point: Point) -> Tensor | None:
        """Minimise over the intercepts only, from the kept probabilities; None if none are kept.

        Returns the unknowns with intercepts that yield the class frequencies. `point` is invalidated.
        """
        blocks = point.probabilities
        if blocks is None:
            return None
        point.probabilities = None
        shift = torch.zeros(self.num_classes, dtype=torch.float64, device=self.x.device)
        for _ in range(SETTLING_STEPS):
            sums = torch.stack([p.sum(0, dtype=torch.float64) for p in blocks.values()]).sum(0)
            excess = sums - self.counts
            if float((excess / self.counts).abs().max()) < 4 * torch.finfo(self.dtype).eps:
                break
            step = self._solve_intercepts(blocks, sums, -excess).clamp(-1.0, 1.0)
            shift += step
            for p in blocks.values():
                p *= step.exp().to(p.dtype)
                p /= p.sum(1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        unknowns = point.unknowns.clone()
        unknowns[:, -1] += shift.to(unknowns.dtype)
        unknowns[:, -1] -= unknowns[:, -1].mean()
        return unknowns

    def _solve_intercepts(self, blocks: dict[int, Tensor], sums: Tensor, wanted: Tensor) -> Tensor:
        """Return the change of the intercepts that changes the sums of probabilities by `wanted` (K,).

        Conjugate gradients on diag(sums) - p^T p, preconditioned by its diagonal's larger part.
        """
        step = torch.zeros_like(wanted)
        scale = sums.clamp_min(1e-12)
        residual = wanted.clone()
        along = residual / scale
        size = first = float(residual @ along)
        for _ in range(self.num_classes + 10):
            if size <= 1e-8 * first or size <= 0.0:
                break
            short = along.to(self.dtype)
            product = sums * along - sum((p.T @ (p @ short)).double() for p in blocks.values())
            curvature = float(along @ product)
            if curvature <= 0.0:  # rounding: it is positive apart from equal changes of all intercepts
                break
            step += size / curvature * along
            residual -= size / curvature * product
            before, size = size, float(residual @ (residual / scale))
            along = residual / scale + size / before * along
        return step - step.mean()

    def curve(self, point: Point, direction: Tensor) -> Tensor:
        """Multiply the Hessian at a point with a direction, in one pass."""

        def residuals(start: int, along: Tensor) -> Tensor:
            if point.probabilities is None:
                along, logits = (half.contiguous() for half in along.split(self.num_classes, dim=1))
                p = logits.softmax(1)
            else:
                p = point.probabilities[start]
            along -= (p * along).sum(1, keepdim=True)
            return along.mul_(p)

        columns = direction if point.probabilities is not None else torch.cat([direction, point.unknowns])
        product = point.C * self._pass(columns, residuals)
        product[:, :-1] += direction[:, :-1]
        return product

    def _pass(self, columns: Tensor, residuals: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Go through the rows once, and multiply residuals with them.

        Args:
            columns: unknowns (k, d + 1).
            residuals: returns residuals (m, K) of a block, given its first row and its values (m, k).
        """
        self.passes += 1
        slopes, intercepts = columns[:, :-1], columns[:, -1]
        if self.rotated is None:
            slopes = slopes @ self.basis.T
        total: Tensor | None = None
        for start, block in self._blocks():
            # classes are rows of `slopes`: narrow products are several times faster so
            made = residuals(start, torch.addmm(intercepts, block, slopes.T))
            if total is None:
                total = block.new_zeros(made.shape[1], block.shape[1] + 1)
            total[:, :-1] += made.T @ block
            total[:, -1] += made.sum(0)
        assert total is not None
        if self.rotated is None:
            total = torch.cat([total[:, :-1] @ self.basis, total[:, -1:]], dim=1)
        return total

    def _blocks(self) -> Sequence[tuple[int, Tensor]]:
        if self.rotated is not None:
            return self.rotated
        return ((start, block.to(self.dtype)) for start, block in self.x.blocks())  # type: ignore[return-value]

    def with_probabilities(self, point: Point) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the first row, the rows (m, r) in the basis and the probabilities (m, K) of each block."""
        slopes, intercepts = point.unknowns[:, :-1], point.unknowns[:, -1]
        for start, block in self._blocks():
            rows = block if self.rotated is not None else block @ self.basis
            kept = None if point.probabilities is None else point.probabilities[start]
            p = torch.addmm(intercepts, rows, slopes.T).softmax(1) if kept is None else kept
            yield start, rows, p

    def curvature_of_uncorrelated(self, point: Point) -> Tensor:
        """Return the curvature (K, r + 1) of uncorrelated features and identical rows, without penalty."""
        weight = point.weight.clamp_min(1e-12)[:, None]
        variances = torch.cat([self.variances, self.variances.new_ones(1)])
        return point.C * self.n * weight * variances

    def precondition(self, point: Point, residual: Tensor) -> Tensor:
        """Solve with the Hessian of uncorrelated features and identical rows.

        The solution sums to zero over the classes, as the unknowns do.
        """
        curvature = self.curvature_of_uncorrelated(point)
        curvature[:, :-1] += 1.0
        inverse = (1 / curvature).to(self.dtype)
        mean = (inverse * residual).sum(0) / inverse.sum(0)
        return inverse * (residual - mean)

    def _class_sums(self) -> Tensor:
        """Sum the rows of each class, in the basis."""
        sums = torch.zeros(self.num_classes, len(self.variances), dtype=torch.float64, device=self.x.device)
        for start, block in self._blocks():
            values = block if self.rotated is not None else block @ self.basis
            sums.index_add_(0, self.y[start : start + len(block)], values.double())
        return sums

    def bound(self, point: Point) -> float:
        """Return the duality gap, an upper bound of the distance of the objective from its minimum.

        A feasible point of the dual assigns each row probabilities that sum to the class frequencies. Those
        of `point` are made feasible by mixing them with one distribution for all rows; since features are
        centred, nothing else changes. The entropy of a mixture is at least the mixture of the entropies. Up
        to rounding, the bound holds at every point, for any intercepts.
        """
        weights, intercepts = point.unknowns[:, :-1].double(), point.unknowns[:, -1].double()
        of_loss = point.gradient[:, :-1].double() - weights
        of_intercepts = point.gradient[:, -1].double()
        sums = (self.counts + of_intercepts / point.C).clamp_min(1e-300)
        share = float((1 - self.counts / sums).max().clamp(0.0, 1.0))
        moved = (1 - share) * of_loss - share * point.C * self.class_sums
        gap = 0.5 * _squared_norm(moved + weights) + (1 - share) * float(of_intercepts @ intercepts)
        if share > 0.0:
            common = ((self.counts - (1 - share) * sums) / (share * self.n)).clamp_min(0.0)
            entropy = -float(torch.special.xlogy(common, common).sum())
            gap += share * point.C * float((self.class_sums * weights).sum())
            gap += share * point.C * (point.loss - self.n * entropy)
        return max(gap, 0.0)

    def estimate(self, point: Point) -> float:
        """Estimate the distance of the objective from its minimum, after a Newton step of the intercepts.

        The penalty makes the objective strongly convex, so half the squared norm of the gradient bounds the
        contribution of the coefficients.
        """
        of_intercepts = point.gradient[:, -1].double() ** 2 / (
            point.C * self.n * point.weight.clamp_min(1e-12)
        )
        return 0.5 * (_squared_norm(point.gradient[:, :-1]) + float(of_intercepts.sum()))


def _softmax(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss, the probabilities and the residuals p - onehot; logits (m, K) are overwritten.

    All is relative to the logit of the label, so that small losses keep their precision.
    """
    rows = torch.arange(len(y), device=y.device)
    logits -= logits[rows, y][:, None].clone()
    top = logits.amax(1)  # at least 0
    p = (logits - top[:, None]).exp_()
    own = p[rows, y].clone()
    p[rows, y] = 0.0
    others = p.sum(1)
    loss = torch.where(top > 0, top + (own + others).log(), others.log1p())
    p /= (own + others)[:, None]
    torch.threshold_(p, NEGLIGIBLE, 0.0)
    residual = p.clone()
    residual[rows, y] = -others / (own + others)
    p[rows, y] = own / (own + others)
    return loss.sum(dtype=torch.float64), p, residual


def _most_kept(device: str) -> int:
    """Return how many probabilities may be kept between passes: on a GPU a quarter of its free memory."""
    if not device.startswith("cuda"):
        return KEPT_NUMBERS
    free, _ = torch.cuda.mem_get_info(device)
    return max(KEPT_NUMBERS, free // 4 // 4)  # bytes of a float32


def _squared_norm(values: Tensor) -> float:
    return float(values.double().square().sum())
