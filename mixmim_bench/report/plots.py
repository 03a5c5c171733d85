"""The plots of a results folder: scores against costs, drawn only when they have changed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mixmim_bench.errors import counted
from mixmim_bench.report.background import Background
from mixmim_bench.report.controls import Controlled, noise_panels
from mixmim_bench.report.fewshot import HEADS, few_shot_panels
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard, Row
from mixmim_bench.report.panels import Panel, Point, exact
from mixmim_bench.report.published import Published, of_task
from mixmim_bench.report.redraw import draw_if_changed
from mixmim_bench.report.text import one_line
from mixmim_bench.specs import RANDOM_INIT, Cost

GREY = "Grey: published by others, not measured here."


@dataclass(frozen=True)
class Axis:
    """A cost that scores are plotted against."""

    title: str
    short: str  # of the report page, for phones
    column: str  # of a Cost, and of results.csv
    more_is_better: bool = False


AXES: Mapping[str, Axis] = {
    "flops": Axis(
        "FLOPs of one image at the size of the run (billion multiply-adds)",
        "FLOPs (G)",
        "gmacs",
    ),
    "params": Axis("Parameters (million)", "Parameters (M)", "params_m"),
    "speed": Axis(
        "Images per second at the size of the run", "Images/s", "images_per_s", more_is_better=True
    ),
}


def places(cell: Cell, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Return what a score costs at the size of its run by axis, without what was not measured.

    A mean over tasks costs what each of them does; where they differ, as for images of different sizes, it
    has no place.
    """
    found, *others = [_places(each, costs) for each in cell.tasks or (cell,)]
    return {axis: x for axis, x in found.items() if all(other.get(axis) == x for other in others)}


def _places(cell: Cell, costs: Mapping[str, Cost]) -> dict[str, float]:
    cost = costs.get(cell.record.costs.get("run", ""))
    values = {name: getattr(cost, axis.column) for name, axis in AXES.items()} if cost else {}
    return {name: value for name, value in values.items() if math.isfinite(value) and value > 0}


def published_places(row: Published) -> dict[str, float]:
    """Return what a published result costs by axis, as far as that is published."""
    costs = {"flops": row.gmacs, "params": row.params_m}
    return {axis: cost for axis, cost in costs.items() if cost}


def write_plots(
    board: Leaderboard,
    costs: Mapping[str, Cost],
    folder: Path,
    published: bool = False,
    background: Background | None = None,
) -> list[Path]:
    """Draw scores against each cost as PNG, SVG and PDF; returns their paths, or none without scores.

    published: whether results of others are drawn in grey.
    background: draws them, until it has finished; by default they are drawn at once.
    """
    written = []
    for name in AXES:
        written += draw_if_changed(
            panels(board, costs, name, published),
            folder,
            f"{name}_vs_accuracy",
            GREY if published else "",
            background,
        )
    return written


def write_noise(controls: Sequence[Controlled], folder: Path) -> list[Path]:
    """Draw scores over noise, one panel per task and probe with controls; returns their paths."""
    return draw_if_changed(
        noise_panels(controls), folder, "noise", "Grey: always predicting the most frequent classes."
    )


def write_few_shot(board: Leaderboard, frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw scores against shots, one figure for each head with one panel a task; returns their paths.

    frame: the long table; of it, only the runs of rows with the usual settings are drawn.
    """
    cells = [cell for row in board.rows if not row.settings for cell in row.cells.values()]
    usual = frame[frame["run_id"].isin({record.run_id for cell in cells for record in cell.records})]
    titles = {column[0]: board.first(column).task_title for column in board.columns}
    written = []
    for head in HEADS:
        found = few_shot_panels(usual, head, titles)
        pale = len({curve.label for panel in found for curve in panel.curves if curve.pale})
        caption = f"Grey: {counted(pale, 'other model')}." if pale else ""
        written += draw_if_changed(found, folder, f"fewshot_{head}", caption)
    return written


def panels(
    board: Leaderboard, costs: Mapping[str, Cost], axis: str = "flops", published: bool = False
) -> list[Panel]:
    """List the panels that have points, by protocol and task, and then one of the mean of each suite.

    Args:
        board: rows and columns.
        costs: measurements by key.
        axis: a key of AXES.
        published: whether to add results of others.
    """
    found: list[tuple[list[str], str, list[Point]]] = []
    for column in sorted(board.columns, key=lambda column: (column[1], column[0])):
        points = _points(board, costs, axis, lambda row, column=column: row.cells.get(column))  # type: ignore[misc]
        if points:
            record = board.first(column)
            others = _published(column, record.metric, axis) if published else []
            title = [one_line(record.task_title), one_line(record.protocol_title)]
            found.append((title, record.metric, [*points, *others]))
    for mean in board.means:
        points = _points(board, costs, axis, lambda row, mean=mean: row.mean_cell(mean.tasks, mean.protocol))  # type: ignore[misc]
        if points:
            found.append(([f"mean of {mean.suite or 'all'}", mean.protocol], mean.metric, points))
    groups = sorted({point.group for _, _, points in found for point in points})
    shown = AXES[axis]
    return [
        Panel(
            title=title,
            points=points,
            groups=groups,
            cost=shown.title,
            metric=metric,
            more_is_better=shown.more_is_better,
        )
        for title, metric, points in found
    ]


def _points(
    board: Leaderboard, costs: Mapping[str, Cost], axis: str, cell_of: Callable[[Row], Cell | None]
) -> list[Point]:
    """Collect rows with a score and a measured cost at the size of the run."""
    points = []
    for row in board.rows:
        cell = cell_of(row)
        x = places(cell, costs).get(axis) if cell else None
        if cell and x and not row.settings:
            label = label_of(row, board)
            points.append(
                Point(
                    label=label,
                    group=label,
                    x=x,
                    value=cell.value,
                    low=cell.low,
                    high=cell.high,
                    hollow=row.random_init,
                )
            )
    return points


def _published(column: Column, metric: str, axis: str) -> list[Point]:
    """Return published results as points in the background, where their cost is published."""
    points = []
    for row in of_task(*column, metric, ()):
        cost = published_places(row).get(axis)
        if cost:
            name = f"{row.model}, {row.pretrain_data} (published)"
            points.append(
                exact(row.value / 100, label=name, group="published", x=cost, pale=True, named=False)
            )
    return points


def label_of(row: Row, board: Leaderboard) -> str:
    """Return the label of a row, including its weights if its model has several."""
    about = []
    if row.random_init:
        about.append(RANDOM_INIT)
    elif len(board.weights[row.model]) > 1:
        about.append(row.weights)
    if row.precision != "float32":
        about.append(row.precision)
    return one_line(f"{row.model} ({', '.join(about)})" if about else row.model)
