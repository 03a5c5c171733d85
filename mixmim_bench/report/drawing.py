"""Draw scores against FLOPs in the style of a paper."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mixmim_bench.atomic import write_whole
from mixmim_bench.report.plots import Panel, Point

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


@matplotlib.rc_context(STYLE)
def draw(panels: Sequence[Panel]) -> Figure:
    """Draw one panel per task and protocol, with one point and interval per row.

    A line joins the Pareto-optimal models. Random weights have open markers.
    """
    across = min(len(panels), PANELS_IN_A_ROW)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(2.6 * across, 5.2), 0.8 + 2.5 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("FLOPs of one image at the size of the run (billion multiply-adds)", fontsize=9)
    figure.supylabel("Score (%)", fontsize=9)
    keys = _legend(panels)
    legend = figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 4))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


@matplotlib.rc_context(STYLE)
def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Save a figure in the formats given by the suffixes, each file atomically."""
    for path in paths:
        kind, drawn = path.suffix[1:], io.BytesIO()
        figure.savefig(drawn, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        write_whole(path, drawn.getvalue())


def _draw_panel(axis: Any, panel: Panel) -> None:
    points = panel.points
    for point in points:
        look = _look(panel.labels.index(point.label), point.random_init)
        error = [[100 * (point.value - point.low)], [100 * (point.high - point.value)]]
        x, y = point.gmacs, 100 * point.value
        axis.errorbar(x, y, yerr=error, fmt="none", ecolor=look["color"], capsize=2.5, elinewidth=1)
        axis.plot(x, y, linestyle="none", **look)
    front = _front(points)
    axis.plot(*front, color="0.6", linewidth=0.8, zorder=1)
    title = "\n".join(textwrap.fill(line, TITLE_WIDTH, break_on_hyphens=False) for line in panel.title)
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


def _front(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return the Pareto front: GMACs and scores in percent."""
    xs: list[float] = []
    ys: list[float] = []
    for point in sorted(points, key=lambda p: (p.gmacs, -p.value)):
        if not ys or 100 * point.value > ys[-1]:
            xs.append(point.gmacs)
            ys.append(100 * point.value)
    return xs, ys


def _look(place: int, random_init: bool) -> dict[str, Any]:
    colour = f"C{place % 10}"
    return {
        "marker": MARKERS[(place + place // 10) % len(MARKERS)],
        "color": colour,
        "markerfacecolor": "white" if random_init else colour,
        "markersize": 6,
    }


def _legend(panels: Sequence[Panel]) -> list[Line2D]:
    """Make one key per label."""
    labels = panels[0].labels
    kinds = sorted({(point.label, point.random_init) for panel in panels for point in panel.points})
    return [
        Line2D([], [], linestyle="none", label=label, **_look(labels.index(label), random_init))
        for label, random_init in kinds
    ]
