"""Two models on the same test images: paired differences, from the predictions that are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixmim_bench.errors import BenchError, UnknownName
from mixmim_bench.report.leaderboard import Cell, Row, leaderboard
from mixmim_bench.scoring import metrics
from mixmim_bench.scoring.intervals import Z95, resample
from mixmim_bench.scoring.statistics import (
    Z80,
    detectable_difference,
    holm,
    mcnemar_mid_p,
    paired_bootstrap,
    paired_z_p,
    seeds_t,
    z_p,
)
from mixmim_bench.suite.records import RunStore

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A task and protocol: the scores of two models on the n images that both have, and their difference."""

    task: str
    protocol: str
    metric: str
    n: int
    seeds: int  # pairs of seeds or draws that the difference is averaged over
    first: float
    second: float
    difference: float  # first - second, a fraction
    low: float  # its 95 % interval
    high: float
    test: str
    p: float
    p_holm: float  # corrected for the number of comparisons
    detectable: float  # the difference that n images like these would show in 80 % of cases
    verdict: str


def compare(
    store: RunStore, first: str, second: str, say: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Compare two models wherever both have results; a name is MODEL, or MODEL/WEIGHTS if it has several.

    `say` is given what could not be compared, and why. Raises BenchError for names without results, for
    models that share no task and protocol, and where nothing could be compared.
    """
    board = leaderboard(store.records())
    rows = [row for row in board.rows if not row.settings]
    a, b = (_find(rows, name) for name in (first, second))
    shared = [column for column in board.columns if column in a.cells and column in b.cells]
    if not shared:
        raise BenchError(f"{first} and {second} share no task and protocol; run both on one")
    pairs = {}
    for column in shared:
        try:
            pairs[column] = _Pair(store, a.cells[column], b.cells[column])
        except BenchError as error:
            if column == shared[-1] and not pairs:
                raise
            say(f"{' '.join(column)} is left out: {error}")
    corrected = holm([pair.p for pair in pairs.values()])
    return [
        Comparison(
            task=task,
            protocol=protocol,
            metric=pair.metric,
            n=pair.n,
            seeds=pair.seeds,
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
        for ((task, protocol), pair), p_holm in zip(pairs.items(), corrected, strict=True)
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


@dataclass(frozen=True)
class _Unit:
    """What is kept of one seed or draw: ids (n,), and the statistics of the items of all draws in it."""

    ids: np.ndarray
    every: Sequence[metrics.Items]

    def ordered(self, ids: Sequence[str]) -> "_Unit":
        """Take some images, in the order given."""
        places = {image: row for row, image in enumerate(self.ids.tolist())}
        rows = np.array([places[image] for image in ids])
        return _Unit(self.ids[rows], [[values[rows] for values in items] for items in self.every])


class _Pair:
    """What two models make of the images, and with the seeds or draws, that both have."""

    def __init__(self, store: RunStore, a: Cell, b: Cell) -> None:
        self.metric = a.record.metric
        self.drawn = a.record.identity["seed"] is not None or b.record.identity["seed"] is not None
        ours, theirs = _units(store, a), _units(store, b)
        if a.record.identity["seed"] is None:
            ours = dict.fromkeys(theirs, ours[0, 0])  # what is not drawn is the same for every seed
        if b.record.identity["seed"] is None:
            theirs = dict.fromkeys(ours, theirs[0, 0])
        # the same seed draws the same images for few-shot probes; where no seed is shared any pairs will do
        keys = sorted(set(ours) & set(theirs))
        sides = [ours[key] for key in keys or sorted(ours)], [theirs[key] for key in keys or sorted(theirs)]
        self.seeds = min(map(len, sides))
        # several draws of one random network say nothing of other networks
        self.one_seed = self.drawn and (
            self.seeds == 1 or any(each.record.random_init and each.seeds == 1 for each in (a, b))
        )
        x, y = (side[: self.seeds] for side in sides)
        ids = sorted(set.intersection(*(set(unit.ids.tolist()) for unit in [*x, *y])))
        if not ids:
            raise BenchError(f"{a.record.task} {a.record.protocol}: the two have no test image in common")
        self.n = len(ids)
        x, y = ([unit.ordered(ids) for unit in side] for side in (x, y))
        try:
            if metrics.is_mean(self.metric):
                self._compare_means(*(np.array([_mean_hits(unit) for unit in side]) for side in (x, y)))
            else:
                self._compare_reduced(x, y)
        except ValueError as error:  # such as no class with both positives and negatives
            raise BenchError(f"{a.record.task} {a.record.protocol}: {error}") from error

    def _compare_means(self, x: np.ndarray, y: np.ndarray) -> None:
        """Compare how often each image was right, (S, n)."""
        self.first, self.second = float(x.mean()), float(y.mean())
        differences = x - y
        if self.seeds > 1:
            of_mean = differences.mean(0).var(ddof=1) / self.n
            of_each = differences.var(axis=1, ddof=1).mean() / self.n
            self._judge_seeds(differences.mean(1), float(of_mean), float(of_each))
            self.differing = int(np.count_nonzero(differences.mean(0)))
            return
        (differences,) = differences
        self.low, self.high = paired_bootstrap(differences)
        self.detectable = detectable_difference(differences)
        self.differing = int(np.count_nonzero(differences))
        if set(np.unique([x, y])) <= {0.0, 1.0}:
            self.test, self.p = "McNemar mid-p", mcnemar_mid_p(int((x > y).sum()), int((y > x).sum()))
        else:
            self.test, self.p = "paired z", paired_z_p(differences)

    def _compare_reduced(self, x: Sequence[_Unit], y: Sequence[_Unit]) -> None:
        """Compare by resampling the images, the same ones for both."""
        reduce = metrics.METRICS[self.metric].reduce

        def values(side: Sequence[_Unit], weights: np.ndarray) -> np.ndarray:
            """Return the value of each unit, (S, r)."""
            return np.array([np.mean([reduce(items, weights) for items in u.every], axis=0) for u in side])

        whole = np.ones((1, self.n))
        first, second = values(x, whole)[:, 0], values(y, whole)[:, 0]
        self.first, self.second = float(first.mean()), float(second.mean())
        drawn = np.concatenate([values(x, w) - values(y, w) for w in resample(self.n)], axis=1)
        of_mean = float(np.nanvar(drawn.mean(0), ddof=1))
        self.differing = self.n if of_mean else 0
        if self.seeds > 1:
            self._judge_seeds(first - second, of_mean, float(np.nanvar(drawn, axis=1, ddof=1).mean()))
            return
        self.low, self.high = (float(bound) for bound in np.nanquantile(drawn, [0.025, 0.975]))
        self.detectable = (Z95 + Z80) * of_mean**0.5
        self.test, self.p = "paired bootstrap z", z_p(self.first - self.second, of_mean**0.5)

    def _judge_seeds(self, values: np.ndarray, of_mean: float, of_each: float) -> None:
        """Compare over several seeds: another seed would move the difference, as other images would."""
        self.test = "paired t over seeds and images"
        self.p, half = seeds_t(values, of_mean, of_each, self.n)
        self.low, self.high = float(values.mean()) - half, float(values.mean()) + half
        self.detectable = max(half * (1 + Z80 / Z95), 1 / self.n)


def _units(store: RunStore, cell: Cell) -> dict[tuple[int, int], _Unit]:
    """Read what was kept of each seed and draw: (seed, draw) -> its predictions.

    The draws of one random network are no independent ones, so with several seeds they make one unit.
    """
    found = {}
    for record in cell.records:
        arrays = store.arrays(record.run_id)
        every = metrics.kept_draws(record.metric, arrays)
        seed = record.identity["seed"] or 0
        if record.random_init and cell.seeds > 1:
            found[seed, 0] = _Unit(arrays["ids"], every)
        else:
            found.update({(seed, draw): _Unit(arrays["ids"], [items]) for draw, items in enumerate(every)})
    return found


def _mean_hits(unit: _Unit) -> np.ndarray:
    """Return how often each image was right, (n,)."""
    return np.mean([items[0] for items in unit.every], axis=0)


def _verdict(first: str, second: str, pair: _Pair, p: float) -> str:
    found = _finding(first, second, pair, p)
    if pair.one_seed:
        return f"{found} (one seed: the spread of other seeds is not covered)"
    return found


def _finding(first: str, second: str, pair: _Pair, p: float) -> str:
    if p < LEVEL:
        return f"{first if pair.first > pair.second else second} is better"
    if 0.5**pair.differing >= LEVEL:
        return "too few images differ to tell anything"
    such = f"{pair.n} images" + (f" and {pair.seeds} seeds" if pair.seeds > 1 else "")
    return f"no difference shown; {such} tell {100 * pair.detectable:.1f} points or more"
