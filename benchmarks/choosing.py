"""How much is lost by choosing C on a small val: rules of choice over small, mostly imbalanced settings.

python benchmarks/choosing.py [SEED]

Each setting draws Gaussian classes of unequal size, fits the path of `linear` on train, and fits it again on
train and val. What a rule loses is the distance of its score on 3,000 test items from that of the best C.
Settings: 60 to 1,000 images; 16, 64 or 512 features; 3 or 10 classes, the largest 1, 5 or 50 times the
smallest; near or far apart; train drawn as val is, or balanced.
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
    """What is known of each C: on val of the fit on train, on test of the fit on both."""

    y: np.ndarray  # of val
    guess: float  # the log-loss of the class frequencies of train
    on_val: list[np.ndarray]  # scores (n, K)
    on_test: np.ndarray
    rescaled: np.ndarray  # on test, where C is rescaled to the larger number of images


def draw(
    rng: np.random.Generator, n: int, d: int, classes: int, imbalance: int, apart: float, balanced: bool
):
    """Draw features and labels of train, val and test."""
    shares = np.geomspace(1, imbalance, classes)
    shares /= shares.sum()
    centres = rng.normal(size=(classes, d)) * apart * np.sqrt(2 / d)
    mixing = 0.7 * np.eye(d) + 0.5 * rng.normal(size=(d, d)) / np.sqrt(d) * np.exp(0.7 * rng.normal(size=d))
    found = []
    for rows in (3 * n // 4, n - 3 * n // 4, TEST):
        y = np.concatenate([np.arange(classes), rng.choice(classes, rows - classes, p=shares)])
        if balanced and not found:
            y = np.repeat(np.arange(classes), max(rows // classes, 1))
        found.append((((centres[y] + rng.normal(size=(len(y), d))) @ mixing).astype(np.float32), y))
    return found


def tried(train, val, test, classes: int, metric: str) -> Tried:
    """Fit the paths of a setting."""

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


def first_best(found: Tried, metric: str) -> int:
    """The smallest of the best by the metric; ends when 8 were no better."""
    values = [value(metric, found.y, scores) for scores in found.on_val]
    ends = next((i for i in range(len(values)) if i - int(np.argmax(values[: i + 1])) >= 8), len(values))
    return int(np.argmax(values[:ends]))


def lowest_log_loss_of_best(found: Tried, metric: str) -> int:
    """The lowest log-loss among equal values of the metric, of the whole sweep."""
    values = np.array([value(metric, found.y, scores) for scores in found.on_val])
    losses = np.array([log_loss(found.y, scores) for scores in found.on_val])
    return int(np.argmin(np.where(values == values.max(), losses, np.inf)))


def lowest_log_loss(found: Tried, metric: str) -> int:
    """The lowest log-loss, whatever the metric."""
    del metric
    return int(np.argmin([log_loss(found.y, scores) for scores in found.on_val]))


def as_linear_does(found: Tried, metric: str, patience: int = 8) -> int:
    """`mixmim_bench.scoring.choosing.Sweep`, as the protocol `linear` uses it."""
    sweep = Sweep(metric, found.y, found.guess, patience)
    for scores in found.on_val:
        sweep.add(scores)
        if sweep.ended:
            break
    return sweep.best()


RULES: dict[str, Callable[[Tried, str], int]] = {
    "first best, ended by patience": first_best,
    "best, then log-loss": lowest_log_loss_of_best,
    "log-loss alone": lowest_log_loss,
    "linear, of the whole sweep": lambda found, metric: as_linear_does(found, metric, 0),
    "linear": as_linear_does,
}


def main(seed: int = 0) -> None:
    """Print a table."""
    warnings.simplefilter("ignore")
    grid = list(
        itertools.product((60, 200, 350, 1000), (16, 64, 512), (3, 10), (1, 5, 50), (1.0, 3.0), (False, True))
    )
    for metric in ("top1", "mean_per_class"):
        rng = np.random.default_rng(seed)
        lost: dict[str, list[float]] = {name: [] for name in [*RULES, "linear, C rescaled for the refit"]}
        for setting in grid:
            found = tried(*draw(rng, *setting), setting[2], metric)
            for name, rule in RULES.items():
                lost[name].append(found.on_test.max() - found.on_test[rule(found, metric)])
            place = as_linear_does(found, metric)
            lost["linear, C rescaled for the refit"].append(found.on_test.max() - found.rescaled[place])
        print(f"\n{metric}: points lost in {len(grid)} settings\n")
        print("| rule | mean | share above 3 | largest |\n| --- | --- | --- | --- |")
        for name, values in lost.items():
            points = 100 * np.array(values)
            print(f"| {name} | {points.mean():.1f} | {(points > 3).mean():.0%} | {points.max():.0f} |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
