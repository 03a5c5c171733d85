"""Test points lost by selecting C on a small val, for several rules and small, mostly imbalanced settings.

    python benchmarks/choosing.py [SEED]

Each setting draws Gaussian classes of unequal size, fits the path of `linear` on train, and refits it on
train and val. A rule loses the difference between its score on 3,000 test items and that of the best C.
Settings: 60 to 1,000 images; 16, 64 or 512 features; 3 or 10 classes, the largest 1, 5 or 50 times the
smallest; close together or far apart; train distributed like val, or balanced.
"""

import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixmim_bench.probes.logistic import LogisticPath
from mixmim_bench.scoring.choosing import Sweep, log_loss, loss_of_frequencies
from mixmim_bench.scoring.metrics import value
from mixmim_bench.scoring.predictions import of_all_classes

CS = np.logspace(-6, 5, 45)
TEST = 3000


@dataclass
class Tried:
    """The results of each C: on val after fitting on train, on test after fitting on both."""

    y: np.ndarray  # labels of val
    guess: float  # log-loss on val of the class frequencies of train
    on_val: list[np.ndarray]  # scores (n, K)
    on_test: np.ndarray  # the metric for each C
    rescaled: np.ndarray  # the same with C rescaled to the larger number of images


def draw(
    rng: np.random.Generator, n: int, d: int, classes: int, imbalance: int, apart: float, balanced: bool
):
    """Draw features and labels of train, val and test."""
    shares = np.geomspace(1, imbalance, classes)
    shares /= shares.sum()
    centres = rng.normal(size=(classes, d)) * apart * np.sqrt(2 / d)
    mixing = 0.7 * np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d) * np.exp(0.7 * rng.normal(size=d))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in (3 * n // 4, n - 3 * n // 4, TEST):
        y = np.concatenate([np.arange(classes), rng.choice(classes, rows - classes, p=shares)])
        if balanced and not parts:  # train
            y = np.repeat(np.arange(classes), max(rows // classes, 1))
        parts.append((((centres[y] + rng.normal(size=(len(y), d))) @ mixing).astype(np.float32), y))
    return parts


def tried(train, val, test, classes: int, metric: str) -> Tried:
    """Fit the paths of a setting and evaluate them."""

    def scores(path, x):
        return [of_all_classes(each, path.classes_, classes) for each in path.decision_path(x)]

    both = np.vstack([train[0], val[0]]), np.concatenate([train[1], val[1]])
    share = len(train[1]) / len(both[1])
    on_test = [
        np.array([value(metric, test[1], each) for each in scores(LogisticPath(Cs).fit(*both), test[0])])
        for Cs in (CS, CS * share)
    ]
    guess = loss_of_frequencies(val[1], train[1], classes)
    return Tried(val[1], guess, scores(LogisticPath(CS).fit(*train), val[0]), *on_test)


def first_best(results: Tried, metric: str) -> int:
    """Select the smallest C with the best metric; stop after 8 values without improvement."""
    values = [value(metric, results.y, scores) for scores in results.on_val]
    ends = next((i for i in range(len(values)) if i - int(np.argmax(values[: i + 1])) >= 8), len(values))
    return int(np.argmax(values[:ends]))


def lowest_log_loss_of_best(results: Tried, metric: str) -> int:
    """Select the lowest log-loss among those with the best metric, over the whole sweep."""
    values = np.array([value(metric, results.y, scores) for scores in results.on_val])
    losses = np.array([log_loss(results.y, scores) for scores in results.on_val])
    return int(np.argmin(np.where(values == values.max(), losses, np.inf)))


def lowest_log_loss(results: Tried, metric: str) -> int:
    """Select the lowest log-loss, ignoring the metric."""
    del metric
    return int(np.argmin([log_loss(results.y, scores) for scores in results.on_val]))


def as_linear_does(results: Tried, metric: str, patience: int = 8) -> int:
    """Select with `mixmim_bench.scoring.choosing.Sweep`, like the protocol `linear`."""
    sweep = Sweep(metric, results.y, results.guess, patience)
    for scores in results.on_val:
        sweep.add(scores)
        if sweep.ended:
            break
    return sweep.best()


RULES: dict[str, Callable[[Tried, str], int]] = {
    "first best, stopped by patience": first_best,
    "best, then log-loss": lowest_log_loss_of_best,
    "log-loss alone": lowest_log_loss,
    "linear, on the whole sweep": lambda results, metric: as_linear_does(results, metric, 0),
    "linear": as_linear_does,
}


def main(seed: int = 0) -> None:
    """Print a table per metric."""
    warnings.simplefilter("ignore")
    grid = list(
        itertools.product((60, 200, 350, 1000), (16, 64, 512), (3, 10), (1, 5, 50), (1.0, 3.0), (False, True))
    )
    for metric in ("top1", "mean_per_class"):
        rng = np.random.default_rng(seed)
        lost: dict[str, list[float]] = {name: [] for name in [*RULES, "linear, C rescaled for the refit"]}
        for setting in grid:
            results = tried(*draw(rng, *setting), setting[2], metric)
            for name, rule in RULES.items():
                lost[name].append(results.on_test.max() - results.on_test[rule(results, metric)])
            place = as_linear_does(results, metric)
            lost["linear, C rescaled for the refit"].append(results.on_test.max() - results.rescaled[place])
        print(f"\n{metric}: points lost in {len(grid)} settings\n")
        print("| rule | mean | share above 3 | largest |\n| --- | --- | --- | --- |")
        for name, values in lost.items():
            points = 100 * np.array(values)
            print(f"| {name} | {points.mean():.1f} | {(points > 3).mean():.0%} | {points.max():.0f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
