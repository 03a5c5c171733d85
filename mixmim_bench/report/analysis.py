"""Results as DataFrames and axes, for notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.intervals import with_current_intervals
from mixmim_bench.report.panels import Panel, Point
from mixmim_bench.suite.records import RunStore

ROW = ("model", "weights", "precision")
X = {
    "gmacs": ("FLOPs of one image (billion multiply-adds)", False),
    "params_m": ("Parameters (million)", False),
    "images_per_s": ("Images per second", True),
}


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
    folder = Path(path)
    if not folder.is_dir():
        raise BenchError(f"no results folder {folder}")
    store = RunStore(folder)
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
        Columns (task, protocol) with the mean over seeds, `mean` over all columns and `rank`, the mean rank;
        both are missing for incomplete rows. A column has the newest versions of task, metric and protocol, a
        cell the newest setting of its model; other settings are left out.
    """
    rows = frame[frame["ranked"]] if not metric else frame[frame["metric"] == metric]
    rows = rows[rows["task"].isin(tasks)] if tasks else rows
    rows = rows[rows["protocol"].isin(protocols)] if protocols else rows
    rows = _newest(rows, ["task", "protocol"], ["task_version", "metric_version", "protocol_version"])
    rows = _newest(rows, [*ROW, "task", "protocol"], ["started"], of="setting")
    table = rows.pivot_table(index=list(ROW), columns=["task", "protocol"], values="value", aggfunc="mean")
    whole = table.notna().all(axis=1)
    ranks = table[whole].rank(ascending=False).mean(axis=1)
    means = table[whole].mean(axis=1)
    table[("mean", "")], table[("rank", "")] = means, ranks
    table = table[whole] if complete else table
    return table.sort_values(
        [("rank", ""), *table.columns[:1]], ascending=[True, *[False] * 1], na_position="last"
    )


def _newest(rows: pd.DataFrame, by: list[str], keys: list[str], of: str = "") -> pd.DataFrame:
    """Keep, in each group, the rows with the highest keys, or those that share the value `of` with them."""
    kept = []
    for _, group in rows.groupby(by, sort=False):
        best = group.sort_values(keys, kind="stable").iloc[-1]
        same = group[of] == best[of] if of else (group[keys] == best[keys]).all(axis=1)
        kept.append(group[same])
    return pd.concat(kept) if kept else rows


def plot_pareto(
    frame: pd.DataFrame,
    task: str,
    protocol: str = "linear",
    x: str = "gmacs",
    ax: Any = None,
    metric: str = "",
) -> Any:
    """Plot scores of a task against a cost, with intervals and the Pareto front.

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
    rows = rows[rows[x].notna()]
    if rows.empty:
        known = sorted({f"{t} {p}" for t, p in zip(frame["task"], frame["protocol"], strict=True)})
        raise BenchError(f"no results of {task} {protocol} with {x}; {nearest(f'{task} {protocol}', known)}")
    from mixmim_bench.report.drawing import draw_on

    cost, more_is_better = X[x]
    rows = _newest(rows, list(ROW), ["started"])  # of several seeds and settings the newest
    names = _names(rows)
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
        cost=cost,
        metric=rows["metric"].iloc[0],
        more_is_better=more_is_better,
    )
    return draw_on(panel, ax)


def _names(rows: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Return a name for each row, with weights and precision where a model has several."""
    keys = [(row.model, row.weights, row.precision) for row in rows.itertuples()]
    names = {}
    for key in keys:
        others = [other for other in keys if other[0] == key[0] and other != key]
        about = [key[place] for place in (1, 2) if any(other[place] != key[place] for other in others)]
        names[key] = f"{key[0]} ({', '.join(about)})" if about else key[0]
    return names
