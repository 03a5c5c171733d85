"""Results as DataFrames and axes, for notebooks."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.report.compare import compare, differences
from mixmim_bench.report.fewshot import few_shot_panel
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.intervals import with_current_intervals
from mixmim_bench.report.panels import Dots, Matrix, Panel, Point
from mixmim_bench.report.plots import AXES
from mixmim_bench.report.rows import COLUMN, ROW, VERSIONS, names_of, newest, over_seeds
from mixmim_bench.report.runplots import figures_of
from mixmim_bench.scoring.metrics import above_guess, lower_is_better
from mixmim_bench.suite.records import RunStore

X = {axis.column: axis for axis in AXES.values()}


def load_results(path: str | Path = "results", limited: bool = False, controls: bool = False) -> pd.DataFrame:
    """Read the finished runs of a results folder: one row per run and metric.

    Args:
        path: the folder.
        limited: whether smoke runs (`--limit`) are included.
        controls: whether tasks without signal (`--controls`) are included.

    Returns:
        The columns of `results.csv` with the dtypes of `report.frame.DTYPES`; scores are fractions. Invalid
        records and failed runs are left out.

    Raises:
        BenchError: there is no such folder.
    """
    store = _store(path)
    records = [with_current_intervals(store, record, save=False) for record in store.records()]
    kept = [
        record for record in records if (limited or not record.limited) and (controls or not record.control)
    ]
    return to_long(kept, store.read_costs()).reset_index(drop=True)


def leaderboard(
    frame: pd.DataFrame,
    metric: str = "",
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = (),
    complete: bool = False,
) -> pd.DataFrame:
    """Pivot results to one row per model, weights and precision, the best first.

    Args:
        frame: from `load_results`.
        metric: by default the ranked one of each task.
        tasks: only these.
        protocols: only these.
        complete: only rows without a missing score.

    Returns:
        Columns (task, protocol) with the mean over seeds, and over all columns `mean`, `normalised`, the mean
        of (score - guess) / (1 - guess), and `rank`, the mean rank; these three are missing for incomplete
        rows, and ranks are among the complete ones. A column has the newest versions of task, metric and
        protocol and the images of its newest result, a cell the newest setting of its model; other settings
        are left out. Of a calibration error (`ece`) the lowest is the best, and `normalised` is missing.
    """
    rows = frame[frame["ranked"]] if not metric else frame[frame["metric"] == metric]
    rows = rows[rows["task"].isin(tasks)] if tasks else rows
    rows = rows[rows["protocol"].isin(protocols)] if protocols else rows
    rows = _comparable(rows)
    rows = newest(rows, (*ROW, *COLUMN), ["started"], of="setting")
    guesses, lower = rows["guess"].fillna(0.0), lower_is_better(metric)
    share = [
        None if lower else above_guess(value, guess)
        for value, guess in zip(rows["value"], guesses, strict=True)
    ]
    table, shares = (
        rows.assign(shown=values).pivot_table(
            index=list(ROW), columns=list(COLUMN), values="shown", aggfunc="mean"
        )
        for values in (rows["value"], pd.Series(share, rows.index, "float64"))
    )
    shares = shares.reindex(index=table.index, columns=table.columns)
    whole = table.notna().all(axis=1)
    averages = {
        "mean": table[whole].mean(axis=1),
        "normalised": shares[whole].mean(axis=1, skipna=False),
        "rank": table[whole].rank(ascending=lower).mean(axis=1),
    }
    for name, values in averages.items():
        table[(name, "")] = values
    table = table[whole] if complete else table
    return table.sort_values([("rank", ""), *table.columns[:1]], ascending=[True, lower], na_position="last")


def plot_pareto(
    frame: pd.DataFrame,
    task: str,
    protocol: str = "linear",
    x: str = "gmacs",
    ax: Any = None,
    metric: str = "",
) -> Any:
    """Plot scores of a task against a cost, with intervals and the Pareto front.

    The scores are those of the newest versions of task, metric and protocol, on the images of the newest
    result, and of the newest setting of each model; over several seeds, the mean ± one standard deviation.

    Args:
        frame: from `load_results`.
        task: its name.
        protocol: its name.
        x: 'gmacs', 'params_m' or 'images_per_s'.
        ax: the axes to draw on; by default those of a new figure.
        metric: by default the ranked one.

    Returns:
        The axes.

    Raises:
        BenchError: there are no such results, or no such cost.
    """
    if x not in X:
        raise BenchError(f"no cost {x!r}; {nearest(x, X)}")
    rows = frame[(frame["task"] == task) & (frame["protocol"] == protocol)]
    rows = rows[rows["ranked"]] if not metric else rows[rows["metric"] == metric]
    rows = _comparable(rows)
    rows = rows[rows[x].notna()]
    if rows.empty:
        known = sorted({f"{t} {p}" for t, p in zip(frame["task"], frame["protocol"], strict=True)})
        raise BenchError(f"no results of {task} {protocol} with {x}; {nearest(f'{task} {protocol}', known)}")
    from mixmim_bench.report.drawing import draw_on

    rows = over_seeds(newest(rows, ROW, ["started"], of="setting"), ROW)
    names = names_of(rows)
    points = [
        Point(
            label=names[row.model, row.weights, row.precision],
            group=names[row.model, row.weights, row.precision],
            x=float(getattr(row, x)),
            value=row.value,
            low=row.low,
            high=row.high,
            hollow=bool(row.random_init),
        )
        for row in rows.itertuples()
    ]
    panel = Panel(
        title=[task, protocol],
        points=points,
        groups=sorted({point.group for point in points}),
        cost=X[x].title,
        metric=rows["metric"].iloc[0],
        more_is_better=X[x].more_is_better,
    )
    return draw_on(panel, ax)


def _comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep, in each column, the newest versions and the images of the newest result."""
    return newest(newest(rows, COLUMN, VERSIONS), COLUMN, ["started"], of="data")


def plot_fewshot(frame: pd.DataFrame, task: str, head: str = "", ax: Any = None) -> Any:
    """Plot scores of a task against the number of training images per class, with intervals.

    Args:
        frame: from `load_results`.
        task: its name, without `@5shot`.
        head: 'ridge' or 'logistic' of the protocol `fewshot`, or 'linear' for linear probes of `TASK@5shot`;
            by default the first of these that has results.
        ax: the axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        BenchError: there are no such results.
    """
    from mixmim_bench.report.curves import draw_curves_on

    return draw_curves_on(few_shot_panel(frame, task, head), ax)


def plot_per_class(run: str, results: str | Path = "results", ax: Any = None) -> Any:
    """Plot the score of each class of a run with its 95 % interval, the best first.

    Of more than 60 classes, the 30 best and the 30 worst are shown.

    Args:
        run: the first digits of its id.
        results: the results folder.
        ax: the axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        BenchError: there is no such run, or its predictions are missing.
    """
    return _plot_of_run(run, results, "per-class", ax)


def plot_confusion(run: str, results: str | Path = "results", ax: Any = None) -> Any:
    """Plot which classes a run took for which: a matrix, or of more than 40 classes the 25 most frequent.

    Args:
        run: the first digits of its id.
        results: the results folder.
        ax: the axes to draw on; by default those of a new figure.

    Returns:
        The axes.

    Raises:
        BenchError: there is no such run, its images have no single labels, or its predictions are missing.
    """
    return _plot_of_run(run, results, "confusion", ax)


def _plot_of_run(run: str, results: str | Path, what: str, ax: Any) -> Any:
    store = _store(results)
    figure = figures_of(store, store.find(run), what)[what]
    if isinstance(figure, Dots):
        from mixmim_bench.report.dots import draw_dots_on

        return draw_dots_on(figure, ax)
    assert isinstance(figure, Matrix)
    from mixmim_bench.report.matrix import draw_matrix_on

    return draw_matrix_on(figure, ax)


def plot_comparison(first: str, second: str, results: str | Path = "results", ax: Any = None) -> Any:
    """Plot the paired differences of two models over all tasks and protocols that both have.

    Args:
        first: a model of the leaderboard, as in `mixmim-bench compare`.
        second: another one.
        results: the results folder.
        ax: the axes to draw on; by default those of a new figure.

    Returns:
        The axes: differences in points with their 95 % intervals, the largest on top.

    Raises:
        BenchError: the models have no results in common.
    """
    from mixmim_bench.report.dots import draw_dots_on

    return draw_dots_on(differences(compare(_store(results), first, second), first, second), ax)


def compare_models(first: str, second: str, results: str | Path = "results") -> pd.DataFrame:
    """Compare two models by paired tests on the same test images, over all tasks and protocols of both.

    Args:
        first: a model of the leaderboard, as in `mixmim-bench compare`.
        second: another one.
        results: the results folder.

    Returns:
        One row per task and protocol: `metric`, `n` images, `seeds`, the scores `first` and `second`, their
        `difference` with its 95 % interval `low` and `high` as fractions, the `test` with `p`, `p_holm`,
        corrected for the number of rows, and the `verdict`.

    Raises:
        BenchError: the models have no results in common.
    """
    return pd.DataFrame([asdict(row) for row in compare(_store(results), first, second)])


def _store(results: str | Path) -> RunStore:
    folder = Path(results)
    if not folder.is_dir():
        raise BenchError(f"no results folder {folder}")
    return RunStore(folder)
