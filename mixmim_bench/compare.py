"""Two models on the same test images: paired differences, from the predictions that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixmim_bench.errors import BenchError, UnknownName
from mixmim_bench.metrics import kept_hits
from mixmim_bench.report.tables import Cell, Row, leaderboard
from mixmim_bench.stats import detectable_difference, holm, mcnemar_mid_p, paired_bootstrap, paired_z_p
from mixmim_bench.store import RunStore

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A task and protocol: the scores of two models on the n images that both have, and their difference."""

    task: str
    protocol: str
    metric: str
    n: int
    first: float
    second: float
    difference: float  # first - second, a fraction
    low: float  # its 95 % paired bootstrap interval
    high: float
    test: str
    p: float
    p_holm: float  # corrected for the number of comparisons
    detectable: float  # the difference that n images like these would show in 80 % of cases
    verdict: str


def compare(store: RunStore, first: str, second: str) -> list[Comparison]:
    """Compare two models wherever both have results; a name is MODEL, or MODEL/WEIGHTS if it has several.

    Raises BenchError for names without results, and for models that share no task and protocol.
    """
    board = leaderboard(store.records())
    rows = [row for row in board.rows if not row.settings]
    a, b = (_find(rows, name) for name in (first, second))
    shared = [column for column in board.columns if column in a.cells and column in b.cells]
    if not shared:
        raise BenchError(f"{first} and {second} share no task and protocol; run both on one")
    pairs = [_pair(store, a.cells[column], b.cells[column]) for column in shared]
    p_values = [_test(x, y) for x, y in pairs]
    corrected = holm([p for _, p in p_values])
    found = []
    for i, ((task, protocol), (x, y)) in enumerate(zip(shared, pairs, strict=True)):
        low, high = paired_bootstrap(x - y)
        detectable = detectable_difference(x - y)
        found.append(
            Comparison(
                task=task,
                protocol=protocol,
                metric=a.cells[shared[i]].record.metric,
                n=len(x),
                first=float(x.mean()),
                second=float(y.mean()),
                difference=float((x - y).mean()),
                low=low,
                high=high,
                test=p_values[i][0],
                p=p_values[i][1],
                p_holm=corrected[i],
                detectable=detectable,
                verdict=_verdict(first, second, x - y, corrected[i], detectable),
            )
        )
    return found


def _find(rows: Sequence[Row], name: str) -> Row:
    names: dict[str, list[Row]] = {}
    for row in rows:
        for known in (row.model, f"{row.model}/{row.weights}"):
            names.setdefault(known, []).append(row)
    if name not in names:
        raise UnknownName("results of", name, names)
    found = names[name]
    if len({row.weights for row in found}) > 1:
        choices = ", ".join(sorted(f"{row.model}/{row.weights}" for row in found))
        raise BenchError(f"{name} has results with several weights; name one of {choices}")
    return found[0]  # float32 before other precisions


def _pair(store: RunStore, a: Cell, b: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Return for each image that both have how often (over seeds) each was right: (n,), (n,)."""
    ours, theirs = _hits(store, a), _hits(store, b)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise BenchError(f"{a.record.task} {a.record.protocol}: the two have no test image in common")
    return np.array([ours[i] for i in shared]), np.array([theirs[i] for i in shared])


def _hits(store: RunStore, cell: Cell) -> dict[str, float]:
    """Return by image id the share of seeds that were right."""
    found: dict[str, list[float]] = {}
    for record in cell.records:
        arrays = store.arrays(record.run_id)
        hits = kept_hits(record.metric, arrays["y"], arrays["best"])
        for image, hit in zip(arrays["ids"].tolist(), hits.tolist(), strict=True):
            found.setdefault(image, []).append(float(hit))
    return {image: float(np.mean(hits)) for image, hits in found.items()}


def _test(x: np.ndarray, y: np.ndarray) -> tuple[str, float]:
    """Test the difference: McNemar where each image is right or wrong, else the mean over seeds by z."""
    if set(np.unique([x, y])) <= {0.0, 1.0}:
        return "McNemar mid-p", mcnemar_mid_p(int((x > y).sum()), int((y > x).sum()))
    return "paired z", paired_z_p(x - y)


def _verdict(first: str, second: str, differences: np.ndarray, p: float, detectable: float) -> str:
    if p < LEVEL:
        return f"{first if differences.mean() > 0 else second} is better"
    if 0.5 ** np.count_nonzero(differences) >= LEVEL:
        return "too few images differ to tell anything"
    return f"no difference shown; {len(differences)} images tell {100 * detectable:.1f} points or more"
