"""Nearest neighbours by cosine, in chunks: memory does not grow with the number of rows."""

from typing import Any

import numpy as np
import torch

from mixmim_bench.probes.rows import Stacked, stacked

QUERIES = 2**15  # whose neighbours are held at once
PANEL = 2**10  # queries, and
BANK = 2**14  # rows, whose similarities are held at once


def nearest(bank: Any, queries: Any, depth: int, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Find the `depth` rows of a bank (N, d) nearest to each query (n, d), the nearest first.

    Returns cosines (n, depth) and rows (n, depth); fewer columns if the bank has fewer rows.
    """
    rows, asked = stacked(bank), stacked(queries)
    depth = min(depth, len(rows))
    cosines = np.empty((len(asked), depth), dtype=np.float32)
    found = np.empty((len(asked), depth), dtype=np.int64)
    for start in range(0, len(asked), QUERIES):
        stop = min(start + QUERIES, len(asked))
        best = _best(rows, _unit(asked.take(np.arange(start, stop)), device), depth)
        cosines[start:stop], found[start:stop] = (values.cpu().numpy() for values in best)
    return cosines, found


def _best(bank: Stacked, queries: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Go over the bank once, and keep the best of what was seen for each query."""
    cosines = torch.full((len(queries), depth), -torch.inf, device=queries.device)
    found = torch.zeros((len(queries), depth), dtype=torch.int64, device=queries.device)
    for first, block in _panels(bank):
        unit = _unit(block, queries.device)
        for start in range(0, len(queries), PANEL):
            here = slice(start, start + PANEL)
            similarity = queries[here] @ unit.T
            values, places = similarity.topk(min(depth, len(unit)), dim=1)
            merged = torch.cat([cosines[here], values], dim=1)
            rows = torch.cat([found[here], places + first], dim=1)
            cosines[here], order = merged.topk(depth, dim=1)
            found[here] = rows.gather(1, order)
    return cosines, found


def _panels(bank: Stacked) -> Any:
    """Give blocks of BANK rows, whatever arrays they lie in."""
    for start in range(0, len(bank), BANK):
        yield start, bank.take(np.arange(start, min(start + BANK, len(bank))))


def _unit(x: np.ndarray, device: Any) -> torch.Tensor:
    values = torch.from_numpy(x).to(device)
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)


def vote(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Let the k nearest vote with exp(cosine / temperature): scores (n, K); the nearest weighs 1.

    cosines, labels: (n, depth), the nearest first.
    """
    weight = _weights(cosines, k, temperature)
    scores = np.zeros((len(cosines), num_classes), dtype=np.float32)
    np.add.at(scores, (np.arange(len(cosines))[:, None], labels[:, :k]), weight)
    return scores


def shares(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Let the k nearest vote on each of several labels: the weighted share (n, K) that has it.

    cosines (n, depth), labels (n, depth, K) of 1, 0, and -1 for those that do not vote.
    """
    weight = _weights(cosines, k, temperature)[:, :, None]
    voting = (weight * (labels[:, :k] >= 0)).sum(1)
    return (weight * (labels[:, :k] == 1)).sum(1) / np.maximum(voting, 1e-12)


def _weights(cosines: np.ndarray, k: int, temperature: float) -> np.ndarray:
    return np.exp((cosines[:, :k] - cosines[:, :1]) / temperature)
