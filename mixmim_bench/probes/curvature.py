"""Preconditioners for the Newton steps of multinomial logistic regression.

The one in `SoftmaxLoss.precondition` is free, and exact for uncorrelated features of identical rows. Where it
is not enough (rarely used, heavy-tailed features), the curvature of sampled rows is factorised, with several
classes per block: the more classes, the better the preconditioner and the larger the blocks.
"""

import torch
from torch import Tensor

from mixmim_bench.probes.softmax import Point, SoftmaxLoss

ROWS_PER_FEATURE = 8  # sampled: for well-behaved rows the extreme eigenvalues then differ by a factor of 4
FEWEST_ROWS = 2**15
SHRINKAGE = 0.001  # towards the curvature of uncorrelated features, for directions that few sampled rows use
LARGEST_BLOCK = 6144  # coordinates
NEGLIGIBLE = 1e-15  # weights; processors are slow with the subnormal numbers that these lead to
MOST_NUMBERS = 2**27  # in all blocks
PASS_INEFFICIENCY = 4.0  # of narrow products and the softmax in a pass, relative to large products


class Preconditioner:
    """Uncorrelated features at first; the curvature of sampled rows when products have cost as much."""

    def __init__(self, loss: SoftmaxLoss) -> None:
        self.loss = loss
        self.worth = _products_worth_a_factorisation(loss)
        self.spent = 0.0  # products since the last factorisation
        self.sampled: SampledCurvature | None = None

    @property
    def allowance(self) -> float:
        """How many more products to do before `update` factorises."""
        return max(self.worth - self.spent, 8.0)

    def update(self, point: Point) -> None:
        """Factorise the curvature at a point if that pays."""
        if self.spent >= self.worth:
            self.sampled = SampledCurvature(self.loss, point)
            self.spent = 0.0

    def __call__(self, point: Point, residual: Tensor) -> Tensor:
        """Solve approximately with the Hessian at a point; the solution sums to zero over the classes."""
        if self.sampled is not None:
            return self.sampled(residual)
        return self.loss.precondition(point, residual)


class SampledCurvature:
    """The factorised curvature of sampled rows at a point, in blocks of classes."""

    def __init__(self, loss: SoftmaxLoss, point: Point) -> None:
        rows, p = _sample(loss, point, _sampled(loss))
        expected = loss.curvature_of_uncorrelated(point).to(loss.dtype)
        self.groups = _groups(p, _classes_per_block(loss))
        self.inverses = [_invert(rows, p[:, group], point.C, expected[group]) for group in self.groups]

    def __call__(self, residual: Tensor) -> Tensor:
        solution = torch.empty_like(residual)
        for group, inverse in zip(self.groups, self.inverses, strict=True):
            solution[group] = (inverse @ residual[group].flatten()).view(len(group), -1)
        return solution - solution.mean(0)


def _sampled(loss: SoftmaxLoss) -> int:
    """Return how many rows are sampled."""
    return min(loss.n, max(ROWS_PER_FEATURE * loss.size[1], FEWEST_ROWS))


def _classes_per_block(loss: SoftmaxLoss) -> int:
    """Return how many classes a block holds; 0 if even blocks of one class take too much memory."""
    classes, width = loss.size
    most = min(LARGEST_BLOCK // width, MOST_NUMBERS // (classes * width**2), classes)
    return -(-classes // -(-classes // most)) if most else 0  # evenly


def _products_worth_a_factorisation(loss: SoftmaxLoss) -> float:
    """Estimate how many products with the Hessian take as long as a factorisation."""
    classes, width = loss.size
    together = _classes_per_block(loss)
    if not together:
        return float("inf")
    blocks, size = -(-classes // together), together * width
    made = blocks * (together * (together + 1) / 2 * _sampled(loss) * width**2 + size**3)
    return made / (2 * loss.n * width * classes * PASS_INEFFICIENCY)


def _sample(loss: SoftmaxLoss, point: Point, most: int) -> tuple[Tensor, Tensor]:
    """Sample rows (m, r + 1), with an intercept, scaled by the roots of their weights; also p (m, K).

    The probability of a row is proportional to its share of the curvature: p (1 - p), and its length relative
    to the variances. So sums over the sample estimate those over all rows.
    """
    inverse = (1 / loss.variances.clamp_min(1e-12)).to(loss.dtype)
    shares = []
    for _, block, p in loss.with_probabilities(point):
        spread = (p * (1 - p)).sum(1)
        length = (block.square() @ inverse) / len(inverse)
        shares.append(spread * (0.5 + 0.5 * length))
    share = torch.cat(shares).double()
    chance = (most * share / share.sum().clamp_min(1e-300)).clamp(max=1.0)
    if most >= loss.n:
        chance = torch.ones_like(chance)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(len(chance), generator=generator).to(chance) < chance
    rows, ps = [], []
    for start, block, p in loss.with_probabilities(point):  # again: they may be on disk
        inside = chosen[start : start + len(block)]
        scale = chance[start : start + len(block)][inside].rsqrt().to(loss.dtype)[:, None]
        rows.append(torch.cat([block[inside], torch.ones_like(scale)], dim=1) * scale)
        ps.append(p[inside])
    return torch.cat(rows), torch.cat(ps)


def _groups(p: Tensor, size: int) -> list[Tensor]:
    """Put classes that are confused with each other into groups of `size`; p: (m, K)."""
    coupling = (p.T @ p).fill_diagonal_(0.0).cpu()
    left = list(range(p.shape[1]))
    groups = []
    while left:
        group = [max(left, key=lambda k: float(coupling[k, left].sum()))]
        left.remove(group[0])
        while left and len(group) < size:
            nearest = max(left, key=lambda k: float(coupling[k, group].sum()))
            group.append(nearest)
            left.remove(nearest)
        groups.append(torch.tensor(group, device=p.device))
    return groups


def _invert(rows: Tensor, p: Tensor, C: float, expected: Tensor) -> Tensor:
    """Invert the Hessian of the classes of a block, estimated from weighted rows (m, r + 1) and p (m, g).

    expected: its diagonal (g, r + 1) for uncorrelated features, without the penalty.
    """
    classes, width = p.shape[1], rows.shape[1]
    block = rows.new_empty(classes, width, classes, width)
    for a in range(classes):
        for b in range(a, classes):
            weight = -p[:, a] * p[:, b] if a != b else p[:, a] * (1 - p[:, a])
            weight = torch.where(weight.abs() > NEGLIGIBLE, weight, 0.0)
            part = (1 - SHRINKAGE) * C * (rows.T @ (weight[:, None] * rows))
            block[a, :, b, :] = part
            block[b, :, a, :] = part.T
    hessian = block.view(classes * width, classes * width)
    diagonal = hessian.diagonal()
    penalty = torch.ones(classes, width, device=rows.device, dtype=rows.dtype)
    penalty[:, -1] = 0.0
    diagonal += SHRINKAGE * expected.flatten() + penalty.flatten()
    scale = diagonal.clamp_min(torch.finfo(rows.dtype).tiny).rsqrt()
    hessian *= scale[:, None]
    hessian *= scale
    for added in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        diagonal += added
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            inverse = torch.cholesky_inverse(factor)
            break
    else:  # rounding left nothing but the diagonal
        inverse = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse *= scale[:, None]
    inverse *= scale
    return inverse
