"""Two models on the same test images: paired differences, from the predictions that are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixmim_bench import metrics
from mixmim_bench.errors import BenchError, UnknownName
from mixmim_bench.report.tables import Cell, Row, leaderboard
from mixmim_bench.stats import (
    Z80,
    Z95,
    detectable_difference,
    holm,
    mcnemar_mid_p,
    paired_bootstrap,
    paired_z_p,
    resample,
    z_p,
)
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
    pairs = [_Pair(store, a.cells[column], b.cells[column]) for column in shared]
    corrected = holm([pair.p for pair in pairs])
    return [
        Comparison(
            task=task,
            protocol=protocol,
            metric=pair.metric,
            n=pair.n,
            first=pair.first,
            second=pair.second,
            difference=pair.first - pair.second,
            low=pair.low,
            high=pair.high,
            test=pair.test,
            p=pair.p,
            p_holm=p_holm,
            detectable=pair.detectable,
            verdict=_verdict(first, second, pair, p_holm),
        )
        for (task, protocol), pair, p_holm in zip(shared, pairs, corrected, strict=True)
    ]


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


Judgement = tuple[np.ndarray, metrics.Items]  # ids (n,) and statistics of the items, of one seed or draw


class _Pair:
    """What two models make of the images that both have."""

    def __init__(self, store: RunStore, a: Cell, b: Cell) -> None:
        self.metric = a.record.metric
        ours, theirs = _judgements(store, a), _judgements(store, b)
        ids = sorted(set.intersection(*(set(ids.tolist()) for ids, _ in [*ours, *theirs])))
        if not ids:
            raise BenchError(f"{a.record.task} {a.record.protocol}: the two have no test image in common")
        self.n = len(ids)
        x, y = ([_in_order(judgement, ids) for judgement in side] for side in (ours, theirs))
        if metrics.is_mean(self.metric):
            self._compare_means(*(np.mean([items[0] for items in side], axis=0) for side in (x, y)))
        else:
            self._compare_reduced(x, y)

    def _compare_means(self, x: np.ndarray, y: np.ndarray) -> None:
        """Compare how often each image was right, over seeds and draws."""
        self.first, self.second = float(x.mean()), float(y.mean())
        self.low, self.high = paired_bootstrap(x - y)
        self.detectable = detectable_difference(x - y)
        self.differing = int(np.count_nonzero(x - y))
        if set(np.unique([x, y])) <= {0.0, 1.0}:
            self.test, self.p = "McNemar mid-p", mcnemar_mid_p(int((x > y).sum()), int((y > x).sum()))
        else:
            self.test, self.p = "paired z", paired_z_p(x - y)

    def _compare_reduced(self, x: Sequence[metrics.Items], y: Sequence[metrics.Items]) -> None:
        """Compare by resampling the images, the same ones for both."""
        reduce = metrics.METRICS[self.metric].reduce

        def value(side: Sequence[metrics.Items], weights: np.ndarray) -> np.ndarray:
            return np.mean([reduce(items, weights) for items in side], axis=0)

        whole = np.ones((1, self.n))
        self.first, self.second = float(value(x, whole)[0]), float(value(y, whole)[0])
        drawn = np.concatenate([value(x, weights) - value(y, weights) for weights in resample(self.n)])
        self.low, self.high = (float(bound) for bound in np.nanquantile(drawn, [0.025, 0.975]))
        deviation = float(np.nanstd(drawn, ddof=1))
        self.detectable = (Z95 + Z80) * deviation
        self.differing = self.n if deviation else 0
        self.test, self.p = "paired bootstrap z", z_p(self.first - self.second, deviation)


def _judgements(store: RunStore, cell: Cell) -> list[Judgement]:
    """Read what was kept of each seed, and of each draw of a seed."""
    found: list[Judgement] = []
    for record in cell.records:
        arrays = store.arrays(record.run_id)
        drawn = "best" if "best" in arrays else "scores"
        every = arrays[drawn] if arrays[drawn].ndim == 3 else arrays[drawn][None]
        for each in every:
            items = metrics.kept_items(record.metric, {"y": arrays["y"], drawn: each})
            found.append((arrays["ids"], items))
    return found


def _in_order(judgement: Judgement, ids: Sequence[str]) -> metrics.Items:
    places = {image: row for row, image in enumerate(judgement[0].tolist())}
    rows = np.array([places[image] for image in ids])
    return [values[rows] for values in judgement[1]]


def _verdict(first: str, second: str, pair: _Pair, p: float) -> str:
    if p < LEVEL:
        return f"{first if pair.first > pair.second else second} is better"
    if 0.5**pair.differing >= LEVEL:
        return "too few images differ to tell anything"
    return f"no difference shown; {pair.n} images tell {100 * pair.detectable:.1f} points or more"
