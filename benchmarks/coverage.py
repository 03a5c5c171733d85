"""Coverage of 95 % intervals: the share that contains the true score, over grids of settings.

    python benchmarks/coverage.py [TRIALS]

Mean per class: 2 to 100 classes, the largest 1 to 200 times the smallest, 200 to 2,010 items, accuracies of
0.5 to 0.99, equal or lower in small classes. Rankings: normal scores, those of positives 0.5, 1.5 or 3
standard deviations higher; 9 to 120 positives, 1 or 5 classes; the true score is that of infinitely many
items.
"""

import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import norm

from mixmim_bench.scoring.metrics import score

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def of_class_means() -> Iterator[tuple[int, float, Draw]]:
    """Yield the size of the smallest class, the true score, and a function that draws labels and scores."""
    grid = itertools.product(
        (2, 5, 10, 100), (1, 10, 200), (200, 1000, 2010), (0.5, 0.8, 0.95, 0.99), (0.0, 0.15)
    )
    for classes, imbalance, n, rate, worse in grid:
        shares = np.geomspace(imbalance, 1, classes)
        counts = np.maximum((n * shares / shares.sum()).round().astype(int), 2)
        rates = np.clip(rate - np.linspace(0, worse, classes), 0.05, 0.995)
        y = np.repeat(np.arange(classes), counts)

        def draw(rng, y=y, rates=rates, classes=classes):
            hits = rng.random(len(y)) < rates[y]
            return y, np.eye(classes)[np.where(hits, y, (y + 1) % classes)]

        yield int(counts.min()), float(rates.mean()), draw


def of_ranking(name: str) -> Iterator[tuple[int, float, Draw]]:
    """Yield the expected number of positives, the true score, and a function that draws labels and scores."""
    sizes = ((300, 0.03), (1000, 0.01), (300, 0.1), (300, 0.4))
    for (n, prevalence), shift, classes in itertools.product(sizes, (0.5, 1.5, 3.0), (1, 5)):

        def draw(rng, n=n, prevalence=prevalence, shift=shift, classes=classes):
            y = (rng.random((n, classes)) < prevalence).astype(int)
            y[rng.integers(n), y.sum(0) == 0] = 1
            return y, shift * y + rng.normal(size=y.shape)

        at = np.linspace(-8, 8 + shift, 20001)
        positive, negative = prevalence * norm.sf(at - shift), (1 - prevalence) * norm.sf(at)
        precision = np.trapezoid(positive / (positive + negative) * norm.pdf(at - shift), at)
        truth = precision if name == "mean_ap" else norm.cdf(shift / np.sqrt(2))
        yield round(n * prevalence), float(truth), draw


def main(trials: int = 150) -> None:
    """Print a table per metric; class means need no resamples and get six times as many trials."""
    for name, settings, times in (
        ("mean_per_class", of_class_means(), 6 * trials),
        ("roc_auc", of_ranking("roc_auc"), trials),
        ("mean_ap", of_ranking("mean_ap"), trials),
    ):
        rng = np.random.default_rng(0)
        coverage: dict[str, list[float]] = {}
        for smallest, truth, draw in settings:
            intervals = [score(name, *draw(rng)) for _ in range(times)]
            covered = np.mean([each["low"] <= truth <= each["high"] for each in intervals])
            size = "under 20" if smallest < 20 else "20 or more"
            coverage.setdefault(size, []).append(float(covered))
        print(f"\n{name}: share of {times} intervals that contain the true score\n")
        print("| smallest class | settings | minimum | 5 % | median | maximum |")
        print("| --- | --- | --- | --- | --- | --- |")
        for size, shares in sorted(coverage.items(), reverse=True):
            low, fifth, median, high = np.quantile(shares, [0, 0.05, 0.5, 1])
            print(f"| {size} | {len(shares)} | {low:.3f} | {fifth:.3f} | {median:.3f} | {high:.3f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
