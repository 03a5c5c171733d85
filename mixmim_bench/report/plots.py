"""Accuracy against FLOPs, as a paper would print it."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mixmim_bench.atomic import write_whole
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard, Row
from mixmim_bench.report.text import one_line
from mixmim_bench.specs import RANDOM_INIT, Cost

MARKERS = "osD^vP*X<>"
PANELS_IN_A_ROW = 4
TITLE_WIDTH = 30  # characters that fit above a panel
TICKS = 4
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mixmim-bench",
}


@dataclass(frozen=True)
class _Point:
    """A row in a panel: the GMACs of one image at the size of the run, and the score."""

    label: str
    random_init: bool
    gmacs: float
    cell: Cell


def flops_vs_accuracy(board: Leaderboard, costs: Mapping[str, Cost], folder: Path) -> list[Path]:
    """Draw scores over FLOPs as PNG and SVG; returns their paths, none if there is nothing to draw."""
    paths = [folder / f"flops_vs_accuracy.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context(STYLE):
        figure = draw(board, costs)
        if figure is None:
            for path in paths:
                path.unlink(missing_ok=True)  # of results that are gone
            return []
        for path in paths:
            kind, drawn = path.suffix[1:], io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
            write_whole(path, drawn.getvalue())
    return paths


@matplotlib.rc_context(STYLE)
def draw(board: Leaderboard, costs: Mapping[str, Cost]) -> Figure | None:
    """Draw one panel a task and protocol, in it one point a row with its interval; None without points.

    A line joins the models that no cheaper one beats. Weights that were never trained have open markers.
    """
    panels = {column: _points(board, column, costs) for column in board.columns}
    panels = {column: points for column, points in panels.items() if points}
    if not panels:
        return None
    order = sorted(panels, key=lambda column: (column[1], column[0]))
    labels = sorted({point.label for points in panels.values() for point in points})
    across = min(len(panels), PANELS_IN_A_ROW)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(2.6 * across, 5.2), 0.8 + 2.5 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, column in zip(axes, order, strict=False):
        _panel(axis, panels[column], labels)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("FLOPs of one image at the size of the run (billion multiply-adds)", fontsize=9)
    figure.supylabel("Score (%)", fontsize=9)
    keys = _legend([point for column in order for point in panels[column]], labels)
    legend = figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 4))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _points(board: Leaderboard, column: Column, costs: Mapping[str, Cost]) -> list[_Point]:
    """Collect the rows that have a score in a column and a measured cost at the size of its run."""
    found = []
    for row in board.rows:
        cell = row.cells.get(column)
        cost = costs.get(cell.record.costs.get("run", "")) if cell else None
        if cell and cost and not row.settings:
            found.append(_Point(_label(row, board.rows), row.random_init, cost.gmacs, cell))
    return found


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Name a row in the legend, with its weights where its model has results with several."""
    others = {other.weights for other in rows if other.model == row.model and not other.random_init}
    about = []
    if row.random_init:
        about.append(RANDOM_INIT)
    elif len(others) > 1:
        about.append(row.weights)
    if row.precision != "float32":
        about.append(row.precision)
    return one_line(f"{row.model} ({', '.join(about)})" if about else row.model)


def _panel(axis: Any, points: Sequence[_Point], labels: Sequence[str]) -> None:
    for point in points:
        cell, look = point.cell, _look(labels.index(point.label), point.random_init)
        error = [[100 * (cell.value - cell.low)], [100 * (cell.high - cell.value)]]
        x, y = point.gmacs, 100 * cell.value
        axis.errorbar(x, y, yerr=error, fmt="none", ecolor=look["color"], capsize=2.5, elinewidth=1)
        axis.plot(x, y, linestyle="none", **look)
    front = _front(points)
    axis.plot(*front, color="0.6", linewidth=0.8, zorder=1)
    record = points[0].cell.record
    lines = [one_line(record.task_title), one_line(record.protocol_title)]
    title = "\n".join(textwrap.fill(line, TITLE_WIDTH, break_on_hyphens=False) for line in lines)
    axis.set_title(title, parse_math=False)
    values = [point.gmacs for point in points]
    axis.set_xscale("log")
    limits = min(values) / 2.2, max(values) * 2.2
    axis.set_xlim(*limits)
    axis.xaxis.set_major_locator(FixedLocator(_ticks(*limits)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ticks(low: float, high: float) -> list[float]:
    """Choose at most TICKS values such as 1, 2, 5, 10 on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) <= TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / TICKS)]


def _front(points: Sequence[_Point]) -> tuple[list[float], list[float]]:
    """Find the models that none of the same or less cost beats: their GMACs and scores in percent."""
    xs: list[float] = []
    ys: list[float] = []
    for point in sorted(points, key=lambda p: (p.gmacs, -p.cell.value)):
        if not ys or 100 * point.cell.value > ys[-1]:
            xs.append(point.gmacs)
            ys.append(100 * point.cell.value)
    return xs, ys


def _look(place: int, random_init: bool) -> dict[str, Any]:
    colour = f"C{place % 10}"
    return {
        "marker": MARKERS[(place + place // 10) % len(MARKERS)],
        "color": colour,
        "markerfacecolor": "white" if random_init else colour,
        "markersize": 6,
    }


def _legend(points: Sequence[_Point], labels: Sequence[str]) -> list[Line2D]:
    """Make one key a label."""
    kinds = sorted({(point.label, point.random_init) for point in points})
    return [
        Line2D([], [], linestyle="none", label=label, **_look(labels.index(label), random_init))
        for label, random_init in kinds
    ]
