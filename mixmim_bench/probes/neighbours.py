"""Nearest neighbours by cosine similarity, in chunks: memory does not grow with the number of rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mixmim_bench.probes.rows import Stacked, stacked

GROUP = 16  # columns whose largest similarity is found first


@dataclass(frozen=True)
class _Sizes:
    """Chunk sizes: large enough to fill the device, small enough to fit."""

    queries: int  # whose neighbours are searched for in one pass over the bank
    panel: int  # queries, and
    bank: int  # rows, whose similarities are held


ON_CPU = _Sizes(queries=2**15, panel=2**11, bank=2**13)
ON_GPU = _Sizes(queries=2**17, panel=2**13, bank=2**15)  # 1 GiB of similarities


def nearest(bank: Any, queries: Any, depth: int, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows by cosine similarity.

    Args:
        bank: (N, d), in which neighbours are searched for.
        queries: (n, d).
        depth: how many neighbours; fewer are returned if the bank has fewer rows.
        device: where similarities are computed.

    Returns:
        Cosines and rows, both (n, depth), the nearest first.
    """
    rows, asked = stacked(bank), stacked(queries)
    sizes = ON_CPU if device == "cpu" else ON_GPU
    depth = min(depth, len(rows))
    cosines = np.empty((len(asked), depth), dtype=np.float32)
    neighbours = np.empty((len(asked), depth), dtype=np.int64)
    for start in range(0, len(asked), sizes.queries):
        stop = min(start + sizes.queries, len(asked))
        best = _best(rows, _unit(asked.take(np.arange(start, stop)), device), depth, sizes)
        cosines[start:stop], neighbours[start:stop] = (values.cpu().numpy() for values in best)
    return cosines, neighbours


def nearest_others(
    bank: Any, rows: np.ndarray, depth: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Find what `nearest` finds for rows (n,) of the bank itself, none of which is its own neighbour."""
    every = stacked(bank)
    cosines, neighbours = nearest(every, every.take(rows), depth + 1, device)
    left_out = neighbours == rows[:, None]
    left_out[~left_out.any(1), -1] = True  # as near as more than `depth` others: the last of these
    shape = len(rows), neighbours.shape[1] - 1
    return cosines[~left_out].reshape(shape), neighbours[~left_out].reshape(shape)


def _best(
    bank: Stacked, queries: torch.Tensor, depth: int, sizes: _Sizes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Go through the bank once, keeping the best neighbours of each query."""
    cosines = torch.full((len(queries), depth), -torch.inf, device=queries.device)
    neighbours = torch.zeros((len(queries), depth), dtype=torch.int64, device=queries.device)
    # reused, since new memory of this size is slow
    memory = queries.new_empty(min(sizes.panel, len(queries)) * min(sizes.bank, len(bank)))
    for first, block in bank.blocks(sizes.bank):
        unit = _unit(np.array(block, dtype=np.float32), queries.device)
        for start in range(0, len(queries), sizes.panel):
            panel = slice(start, start + sizes.panel)
            best = cosines[panel], neighbours[panel]
            held = memory[: len(best[0]) * len(unit)].view(len(best[0]), len(unit))
            torch.mm(queries[panel], unit.T, out=held)
            cosines[panel], neighbours[panel] = _merge(*best, held, first)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    return cosines, neighbours.gather(1, order)


def _merge(
    cosines: torch.Tensor, neighbours: torch.Tensor, similarity: torch.Tensor, first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge the best so far (m, depth), in any order, with similarities (m, n) of rows from `first` on.

    Only groups of columns are looked at whose largest similarity is at least the worst of the best so far
    or, at first, the depth-th largest of these.
    """
    m, n = similarity.shape
    depth = cosines.shape[1]
    if n % GROUP or n // GROUP < depth:
        values, columns = similarity.topk(min(depth, n), dim=1, sorted=False)
        return _take_best(cosines, neighbours, values, columns + first)
    groups = similarity.view(m, GROUP, n // GROUP)  # of columns n / GROUP apart, which is faster
    largest = groups.amax(1)
    least = cosines.amin(1)
    if bool(least.isneginf().any()):
        least = largest.topk(depth, dim=1, sorted=False).values.amin(1)
    queries, places = (largest >= least[:, None]).nonzero(as_tuple=True)
    candidates = groups[queries, :, places]  # (c, GROUP)
    found = (candidates >= least[queries, None]).flatten().nonzero().flatten()
    inside = found // GROUP
    of = queries[inside]  # in rising order
    counts = torch.bincount(of, minlength=m)
    rank = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts)[of]
    width = int(counts.max())
    values = similarity.new_full((m, width), -torch.inf)
    rows = neighbours.new_zeros(m, width)
    values[of, rank] = candidates.flatten()[found]
    rows[of, rank] = found % GROUP * (n // GROUP) + places[inside] + first
    return _take_best(cosines, neighbours, values, rows)


def _take_best(
    cosines: torch.Tensor, neighbours: torch.Tensor, values: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    merged = torch.cat([cosines, values], dim=1)
    best, order = merged.topk(cosines.shape[1], dim=1, sorted=False)
    return best, torch.cat([neighbours, rows], dim=1).gather(1, order)


def _unit(x: np.ndarray, device: Any) -> torch.Tensor:
    values = torch.from_numpy(x).to(device)
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)


def vote(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Return votes (n, K) of the k nearest, weighted by exp(cosine / temperature); the nearest has weight 1.

    cosines, labels: (n, depth), the nearest first.
    """
    weight = _weights(cosines, k, temperature)
    scores = np.zeros((len(cosines), num_classes), dtype=np.float32)
    np.add.at(scores, (np.arange(len(cosines))[:, None], labels[:, :k]), weight)
    return scores


def shares(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Return the weighted share (n, K) of the k nearest that have each label.

    cosines (n, depth); labels (n, depth, K) of 1, 0, and -1 for abstentions.
    """
    weight = _weights(cosines, k, temperature)[:, :, None]
    voting = (weight * (labels[:, :k] >= 0)).sum(1)
    return (weight * (labels[:, :k] == 1)).sum(1) / np.maximum(voting, 1e-12)


def _weights(cosines: np.ndarray, k: int, temperature: float) -> np.ndarray:
    return np.exp((cosines[:, :k] - cosines[:, :1]) / temperature)
