"""Paired tests of two models on the same test images, from saved predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixmim_bench.errors import BenchError
from mixmim_bench.scoring.intervals import Z95, resample
from mixmim_bench.scoring.metrics import METRICS, Items
from mixmim_bench.scoring.statistics import (
    Z80,
    detectable_difference,
    mcnemar_mid_p,
    paired_bootstrap,
    paired_z_p,
    seeds_t,
    z_p,
)

Key = tuple[int, int]  # seed, draw


@dataclass(frozen=True)
class Unit:
    """The saved predictions of one seed or draw: ids (n,) and per-item statistics of its draws."""

    ids: np.ndarray
    every: Sequence[Items]

    def ordered(self, ids: np.ndarray) -> "Unit":
        """Return the statistics of images in the given order."""
        if np.array_equal(self.ids, ids):
            return self
        places = {image: row for row, image in enumerate(self.ids.tolist())}
        rows = np.array([places[image] for image in ids.tolist()])
        return Unit(self.ids[rows], [[values[rows] for values in items] for items in self.every])


@dataclass(frozen=True)
class Side:
    """The saved predictions of one of two models.

    Attributes:
        units: (seed, draw) -> its predictions.
        drawn: whether seeds matter.
        one_network: whether it is a single random network, so that several draws do not represent other
            networks.
    """

    units: Mapping[Key, Unit]
    drawn: bool
    one_network: bool


class Pair:
    """The predictions of two models on common images, with common seeds or draws."""

    def __init__(self, metric: str, a: Side, b: Side) -> None:
        self.metric = metric
        self.drawn = a.drawn or b.drawn
        ours, theirs = a.units, b.units
        if not a.drawn:
            ours = dict.fromkeys(theirs, ours[0, 0])  # what is not drawn is the same for every seed
        if not b.drawn:
            theirs = dict.fromkeys(ours, theirs[0, 0])
        ours, theirs = _alike(ours, theirs)
        # the same seed draws the same images for few-shot probes; where no seed is shared any pairs will do
        keys = sorted(set(ours) & set(theirs))
        sides = [ours[key] for key in keys or sorted(ours)], [theirs[key] for key in keys or sorted(theirs)]
        self.seeds = min(map(len, sides))
        self.one_seed = self.drawn and (self.seeds == 1 or a.one_network or b.one_network)
        x, y = (side[: self.seeds] for side in sides)
        ids = _common([unit.ids for unit in [*x, *y]])
        if not len(ids):
            raise BenchError("the two have no test image in common")
        self.n = len(ids)
        x, y = ([unit.ordered(ids) for unit in side] for side in (x, y))
        try:
            if METRICS[self.metric].is_mean:
                self._compare_means(*(np.array([_mean_hits(unit) for unit in side]) for side in (x, y)))
            else:
                self._compare_reduced(x, y)
        except ValueError as error:  # such as no class with both positives and negatives
            raise BenchError(str(error)) from error

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

    def _compare_reduced(self, x: Sequence[Unit], y: Sequence[Unit]) -> None:
        """Compare by resampling images, the same for both models."""
        reduce, resamples = METRICS[self.metric].reduce, METRICS[self.metric].resamples

        def values(side: Sequence[Unit], weights: np.ndarray) -> np.ndarray:
            """Return the value of each unit, (S, r)."""
            return np.array([np.mean([reduce(items, weights) for items in u.every], axis=0) for u in side])

        whole = np.ones((1, self.n))
        first, second = values(x, whole)[:, 0], values(y, whole)[:, 0]
        self.first, self.second = float(first.mean()), float(second.mean())
        drawn = np.concatenate([values(x, w) - values(y, w) for w in resample(self.n, resamples)], axis=1)
        of_mean = float(np.nanvar(drawn.mean(0), ddof=1))
        self.differing = self.n if of_mean else 0
        if self.seeds > 1:
            self._judge_seeds(first - second, of_mean, float(np.nanvar(drawn, axis=1, ddof=1).mean()))
            return
        self.low, self.high = (float(bound) for bound in np.nanquantile(drawn, [0.025, 0.975]))
        self.detectable = (Z95 + Z80) * of_mean**0.5
        self.test, self.p = "paired bootstrap z", z_p(self.first - self.second, of_mean**0.5)

    def _judge_seeds(self, values: np.ndarray, of_mean: float, of_each: float) -> None:
        """Compare over several seeds: the difference varies with the seed as well as with the images."""
        self.test = "paired t over seeds and images"
        self.p, half = seeds_t(values, of_mean, of_each, self.n)
        self.low, self.high = float(values.mean()) - half, float(values.mean()) + half
        self.detectable = max(half * (1 + Z80 / Z95), 1 / self.n)


def _common(every: Sequence[np.ndarray]) -> np.ndarray:
    """Return the ids that all have, sorted."""
    first = every[0]
    if np.all(first[:-1] < first[1:]) and all(np.array_equal(ids, first) for ids in every[1:]):
        return first  # as of most runs: much faster than sets
    return np.array(sorted(set.intersection(*(set(ids.tolist()) for ids in every))))


def _alike(a: Mapping[Key, Unit], b: Mapping[Key, Unit]) -> tuple[Mapping[Key, Unit], Mapping[Key, Unit]]:
    """Join the draws of each seed where one of two models has several and the other has them joined."""
    several = [any(draw for _, draw in side) for side in (a, b)]
    if several[0] == several[1]:
        return a, b
    return (_joined(a), b) if several[0] else (a, _joined(b))


def _joined(units: Mapping[Key, Unit]) -> dict[Key, Unit]:
    """Return one unit per seed, with all its draws."""
    seeds = sorted({seed for seed, _ in units})
    of_seed = {seed: [unit for (each, _), unit in units.items() if each == seed] for seed in seeds}
    return {
        (seed, 0): Unit(draws[0].ids, [items for unit in draws for items in unit.every])
        for seed, draws in of_seed.items()
    }


def _mean_hits(unit: Unit) -> np.ndarray:
    """Return how often each image was right, (n,)."""
    return np.mean([items[0] for items in unit.every], axis=0)
