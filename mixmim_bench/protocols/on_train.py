"""Scores of a fitted model on the images that it was fitted to, which show underfitting beside those of test.

All functions return the field `train` of a record: the metrics of the task as fractions, where they are
defined, `loss` and `n`, the number of images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixmim_bench.data.images import Part
from mixmim_bench.data.slices import stratified_order
from mixmim_bench.probes.neighbours import nearest_others
from mixmim_bench.probes.rows import BLOCK_BYTES, Stacked
from mixmim_bench.protocols.contract import SCORED
from mixmim_bench.scoring.choosing import log_losses
from mixmim_bench.scoring.metrics import METRICS, Items, items_of, value_of_items

if TYPE_CHECKING:
    from mixmim_bench.protocols.workbench import Workbench

KEPT_SCORES = 2**27  # scores of classes that are kept at once, for metrics that rank images by them

Scorer = Callable[[np.ndarray], np.ndarray]  # scores (m, K) of features (m, d)
Votes = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # scores (m, K) of cosines and rows (m, k) of neighbours


def chosen_rows(ids: np.ndarray, strata: np.ndarray | None, most: int) -> np.ndarray:
    """Return all rows in order, or `most` of them: stratified, and the same on every machine."""
    if len(ids) <= most:
        return np.arange(len(ids))
    return np.sort(stratified_order(ids, strata)[:most])


def sample(part: Part, most: int) -> Part:
    """Return a part, or the `most` of its images that `chosen_rows` chooses."""
    return part.take(chosen_rows(part.ids, part.targets.strata(), most))


def of_all_rows(
    bench: "Workbench", x: Stacked, y: np.ndarray, ids: np.ndarray, scores_of: Scorer
) -> dict[str, float]:
    """Score a classifier on the features (n, d) that it was fitted to, block by block.

    Metrics that rank images need the scores of all of them: of sets whose scores would take more than 1 GiB,
    a stratified sample is scored.
    """
    ranks = any(METRICS[name].best == 0 for name in bench.metrics)
    most = max(1, KEPT_SCORES // bench.num_classes) if ranks else len(y)
    rows = chosen_rows(ids, y if y.ndim == 1 else None, most)
    return of_some_rows(bench, x, y, rows, scores_of)


def of_some_rows(
    bench: "Workbench",
    x: Stacked,
    y: np.ndarray,
    rows: np.ndarray,
    scores_of: Scorer,
    likelihood: bool = True,
) -> dict[str, float]:
    """Score a classifier on some rows of features; likelihood: whether its scores are logits."""
    step = max(1, BLOCK_BYTES // (8 * max(x.shape[1], bench.num_classes)))
    some = (rows[start : start + step] for start in range(0, len(rows), step))
    return of_scores(bench.metrics, ((y[each], scores_of(x.take(each))) for each in some), likelihood)


def of_neighbours(
    bench: "Workbench", x: Stacked, y: np.ndarray, ids: np.ndarray, k: int, votes: Votes
) -> dict[str, float]:
    """Score the k nearest neighbours of features (n, d) among the others, for `SCORED` images at most."""
    rows = chosen_rows(ids, y if y.ndim == 1 else None, SCORED)
    found = nearest_others(x, rows, k, bench.machine.device)
    return of_scores(bench.metrics, [(y[rows], votes(*found))], likelihood=False)


def of_scores(
    names: Sequence[str], blocks: Iterable[tuple[np.ndarray, np.ndarray]], likelihood: bool = True
) -> dict[str, float]:
    """Score labels and scores that come in blocks, of which only what the metrics need is kept.

    Args:
        names: of metrics.
        blocks: labels (m,) or (m, K), and scores (m, K).
        likelihood: whether the scores are logits, so that they have a log-loss.
    """
    items: dict[str, list[Items]] = {name: [] for name in names}
    n, known, total = 0, 0, 0.0
    for y, scores in blocks:
        n += len(y)
        for name, every in items.items():
            every.append(items_of(name, y, scores))
        if likelihood:
            losses = log_losses(y, scores)
            known, total = known + len(losses), total + float(losses.sum())
    joined = {
        name: [np.concatenate(each) for each in zip(*every, strict=True)] for name, every in items.items()
    }
    return {**of_items(joined, n), **({"loss": total / known} if known else {})}


def of_items(items: Mapping[str, Items], n: int) -> dict[str, float]:
    """Score the statistics of n images by metrics; those that they do not define are left out."""
    scored: dict[str, float] = {}
    for name, each in items.items() if n else ():
        try:
            value = value_of_items(name, each)
        except ValueError:  # no class has both positives and negatives
            continue
        if np.isfinite(value):
            scored[name] = value
    return {**scored, "n": n} if n else {}


def mean_of_draws(draws: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average scores over several draws of training images; n is the mean number of images of a draw."""
    shared = [name for name in draws[0] if all(name in each for each in draws)]
    means = {name: float(np.mean([each[name] for each in draws])) for name in shared}
    return means | ({"n": round(means["n"])} if "n" in means else {})
