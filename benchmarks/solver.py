"""Logistic regression over 45 values of C, against fits of scikit-learn that reach the same objective.

    python benchmarks/solver.py [--rows 10000] [--width 1024] [--classes 100] [--every 8]

scikit-learn uses float64 and the loosest of several tolerances whose objective is at most 1.0001 times ours;
only the time of that fit counts. Every 8th C is timed, and the sum is scaled to 45 values.
"""

import time
import warnings
from typing import Any

import click
import numpy as np

TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def gaussian_classes(rows: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw correlated features of overlapping classes."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((width, width)) * np.arange(1, width + 1) ** -0.7
    centres = 0.35 * rng.standard_normal((classes, width)) @ mixing.T
    y = rng.integers(0, classes, 2 * rows)
    return (centres[y] + rng.standard_normal((2 * rows, width)) @ mixing.T).astype(np.float32), y


@click.command()
@click.option("--rows", default=10_000)
@click.option("--width", default=1_024)
@click.option("--classes", default=100)
@click.option("--every", default=8)
def main(rows: int, width: int, classes: int, every: int) -> None:
    """Time the whole path, and scikit-learn's fits one by one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from mixmim_bench.machine import open_machine
    from mixmim_bench.probes.logistic import LogisticPath

    print(open_machine("cpu").describe())
    x, y = gaussian_classes(rows, width, classes)
    x_train, y_train, x_val, y_val = x[:rows], y[:rows], x[rows:], y[rows:]
    Cs = np.logspace(-6, 5, 45)
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        path = LogisticPath(Cs.tolist()).fit(x_train, y_train)
        seconds.append(time.perf_counter() - clock)
    ours = float(np.median(seconds))
    print(f"ours: 45 values of C in {ours:.1f} s (median of 3), {path.n_iter_} passes over the rows")
    scaler = StandardScaler().fit(x_train.astype(np.float64))
    scaled, scaled_val = (scaler.transform(part.astype(np.float64)) for part in (x_train, x_val))
    theirs, accuracies = [], []
    val_scores = list(path.decision_path(x_val))
    for place in range(0, 45, every):
        fit, tol, spent = reached(LogisticRegression, Cs[place], scaled, y_train, path.objective_path_[place])
        theirs.append(spent)
        pair = (val_scores[place].argmax(1) == y_val).mean(), fit.score(scaled_val, y_val)
        accuracies.append(pair)
        print(
            f"C {Cs[place]:8.1e}: scikit-learn {spent:6.1f} s, tol {tol:.0e}, {fit.n_iter_[0]} iterations; "
            f"accuracy on val {100 * pair[0]:.2f} and {100 * pair[1]:.2f} %",
            flush=True,
        )
    total = sum(theirs) * 45 / len(theirs)
    print(f"scikit-learn: about {total:.0f} s for 45; ratio {total / ours:.1f}")
    best = [max(values) for values in zip(*accuracies, strict=True)]
    print(f"best accuracy on val among these: {100 * best[0]:.2f} (ours) and {100 * best[1]:.2f} %")


def reached(cls: Any, C: float, x: np.ndarray, y: np.ndarray, objective: float) -> tuple[Any, float, float]:
    """Tighten the tolerance until the fit reaches our objective; return the fit, its tol and its time."""
    for tol in TOLERANCES:
        clock = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = cls(C=C, tol=tol, max_iter=10_000).fit(x, y)
        spent = time.perf_counter() - clock
        logits = fit.decision_function(x)
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
        if C * losses.sum() + 0.5 * (fit.coef_**2).sum() <= 1.0001 * objective:
            break
    return fit, tol, spent


if __name__ == "__main__":
    main()
