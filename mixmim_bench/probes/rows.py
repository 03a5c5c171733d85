"""Feature rows in one or several arrays, in memory or memory-mapped, read block by block."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_array

BLOCK_BYTES = 2**23  # of float32, read at a time
GPU_BLOCK_BYTES = 2**28  # for a GPU, which small blocks do not fill
IN_MEMORY_BYTES = 2**30  # of float32: rows that are fewer are kept ready for use
LARGEST_BASIS = 8192  # features of which the uncorrelated basis is computed; beyond it only their variances


class Stacked:
    """Vertically stacked arrays (n_i, d), without copies, such as train and val."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = tuple(arrays)
        self.shape = (sum(len(array) for array in self.arrays), self.arrays[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self, rows: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the rows in order, in blocks of at most `rows`, each with the number of its first row."""
        first = 0
        step = rows or max(1, BLOCK_BYTES // (4 * self.shape[1]))
        for array in self.arrays:
            for start in range(0, len(array), step):
                block = array[start : start + step]
                yield first + start, block
            first += len(array)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy rows (m,) in the given order."""
        taken = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        first = 0
        for array in self.arrays:
            here = np.flatnonzero((rows >= first) & (rows < first + len(array)))
            ordered = here[np.argsort(rows[here], kind="stable")]  # a disk likes it in order
            taken[ordered] = array[rows[ordered] - first]
            first += len(array)
        return taken


def stacked(x: Any) -> Stacked:
    """Convert features, `Stacked` or any array (n, d), to `Stacked`."""
    if isinstance(x, Stacked):
        return x
    return Stacked([x if isinstance(x, np.memmap) else check_array(x, dtype=[np.float32, np.float64])])


LARGEST_SQUARE = 1e18  # a standardised value beyond this has a square near the end of float32


class Standardiser:
    """Centres and scales columns with the mean and deviation of StandardScaler in float64.

    Raises ValueError with the column for values that are not finite or too large.
    """

    def __init__(self, rows: Stacked, scale: bool = True) -> None:
        scaler = StandardScaler()
        lowest, highest = np.full(rows.shape[1], np.inf), np.full(rows.shape[1], -np.inf)
        for start, block in rows.blocks():
            if not np.isfinite(block).all():
                row, column = np.argwhere(~np.isfinite(block))[0]
                raise ValueError(
                    f"Input X contains {block[row, column]} (row {start + row}, column {column}); features "
                    "must be finite, without NaN and infinity"
                )
            lowest, highest = np.minimum(lowest, block.min(0)), np.maximum(highest, block.max(0))
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                scaler.partial_fit(block)
        self.mean: np.ndarray = np.asarray(scaler.mean_)
        self.scale: np.ndarray = np.asarray(scaler.scale_) if scale else np.ones_like(self.mean)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = np.maximum(highest - self.mean, self.mean - lowest)
        usable = np.isfinite(self.mean) & np.isfinite(self.scale) & (largest / self.scale < LARGEST_SQUARE)
        if not usable.all():
            column = int(np.argmin(usable))
            raise ValueError(
                f"Input X has values up to {highest[column]:.3g} in column {column}, too large to compute "
                "with; rescale the column or leave it out"
            )

    def apply(self, block: torch.Tensor) -> torch.Tensor:
        """Standardise rows (m, d) in float64; returns float32."""
        mean, scale = (torch.from_numpy(each).to(block.device) for each in (self.mean, self.scale))
        return ((block.double() - mean) / scale).float()


class Prepared:
    """Standardised rows as tensors on a device: kept if they fit, else recomputed in every pass."""

    def __init__(self, rows: Stacked, standardiser: Standardiser, device: str) -> None:
        self.rows = rows
        self.standardiser = standardiser
        self.device = device
        self.shape = rows.shape
        self.kept: list[tuple[int, torch.Tensor]] | None = None
        if 4 * rows.shape[0] * rows.shape[1] <= IN_MEMORY_BYTES or device != "cpu":
            self.kept = list(self._read())

    def _read(self) -> Iterator[tuple[int, torch.Tensor]]:
        block_bytes = BLOCK_BYTES if self.device == "cpu" else GPU_BLOCK_BYTES
        for start, block in self.rows.blocks(max(1, block_bytes // (4 * self.shape[1]))):
            values = torch.from_numpy(np.array(block))  # a copy: the block may be read-only
            yield start, self.standardiser.apply(values.to(self.device))

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the first row of each block and its values (m, d)."""
        yield from self._read() if self.kept is None else self.kept


def uncorrelated(x: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the orthonormal basis (d, r) in which the features are uncorrelated, and their variances (r,).

    With fewer rows than features, r is the number of rows, and the basis spans all of them.
    """
    n, d = x.shape
    if min(n, d) > LARGEST_BASIS:
        squares = sum(block.double().square().sum(0) for _, block in x.blocks())
        return torch.eye(d, dtype=torch.float64, device=x.device), torch.as_tensor(squares) / n
    if n < d:
        rows = torch.cat([block for _, block in x.blocks()]).double()
        spanning, inner = torch.linalg.qr(rows.T)
        variances, turned = torch.linalg.eigh(inner @ inner.T)
        return spanning @ turned, (variances / n).clamp_min(0.0)
    gram = torch.zeros(d, d, dtype=torch.float64, device=x.device)
    for _, block in x.blocks():
        gram += (block.T @ block).double()
    variances, basis = torch.linalg.eigh(gram)
    return basis, (variances / n).clamp_min(0.0)
