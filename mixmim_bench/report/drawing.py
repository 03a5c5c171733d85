"""Draw scores against costs in the style of a paper: readable at column width and by colour-blind readers."""

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from adjustText import adjust_text
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixmim_bench.atomic import write_whole
from mixmim_bench.report.panels import Panel, Point

# Okabe and Ito's colours without yellow, which is pale on white (jfly.uni-koeln.de/color)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>*"
OTHERS = "#9A9A9A"
PANELS_IN_A_ROW = 4
TITLE_WIDTH = 30  # characters that fit above a panel
TICKS = 4
DIRECT = 9  # points that are labelled in a panel; of more, those on the front
KEYS = 24  # in a legend; of more groups, those on a front
DPI = 200  # of PNG
MOVES = 300  # of labels, each time the same
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
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "mixmim-bench",
    "pdf.fonttype": 42,
}


@matplotlib.rc_context(STYLE)
def draw(panels: Sequence[Panel], caption: str = "") -> Figure:
    """Draw one panel per task and protocol, with one point and interval per model.

    A line joins the Pareto-optimal models: no other is better at the same cost or less. Points are labelled
    directly where they are few, else those on the front. Random weights have open markers, points in the
    background are grey.
    """
    across = min(len(panels), PANELS_IN_A_ROW)
    down = math.ceil(len(panels) / across)
    wide, tall = (6.2, 4.2) if len(panels) == 1 else (max(2.7 * across, 5.2), 0.9 + 2.5 * down)
    figure = Figure(figsize=(wide, tall), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    looks = _looks(panels)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, looks)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _label_axes(figure, panels, caption)
    keys = _legend(panels, looks)
    if keys:
        legend = figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 2 * across, 5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    with _hidden(each for axis in axes for each in (*axis.lines, *axis.collections)):  # no part of the layout
        figure.draw_without_rendering()  # sizes are known, and labels can be placed
    figure.set_layout_engine("none")
    with _hidden(_all_but_labels(figure)), _hidden(axes[: len(panels)]):  # adjust_text draws the whole figure
        for axis, panel in zip(axes, panels, strict=False):
            axis.set_visible(True)
            _label_points(axis, panel, looks)
            axis.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def draw_on(panel: Panel, axes: Any = None) -> Any:
    """Draw one panel on axes, or on those of a new figure, and return them."""
    if axes is None:
        axes = Figure(figsize=(5.2, 3.6), layout="constrained").subplots()
    looks = _looks([panel])
    _draw_panel(axes, panel, looks)
    axes.set_xlabel(panel.cost)
    axes.set_ylabel(f"{panel.metric} (%)")
    axes.figure.draw_without_rendering()
    _label_points(axes, panel, looks)
    return axes


@matplotlib.rc_context(STYLE)
def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Save a figure in the formats given by the suffixes, each file atomically and without a date.

    `Figure.savefig` would draw everything twice per format. Only labels need that: the lines from them to
    their points begin at the boxes of the last drawing.
    """
    for path in paths:
        print_to = _PRINTERS[path.suffix]
        with _hidden(_all_but_labels(figure)):
            print_to(figure, io.BytesIO())
        drawn = io.BytesIO()
        print_to(figure, drawn)
        write_whole(path, drawn.getvalue())


def _print_png(figure: Figure, file: io.BytesIO) -> None:
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def _print_svg(figure: Figure, file: io.BytesIO) -> None:
    figure.set_dpi(DPI)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})


def _print_pdf(figure: Figure, file: io.BytesIO) -> None:
    figure.set_dpi(DPI)
    FigureCanvasPdf(figure).print_pdf(file, metadata={"CreationDate": None})


_PRINTERS = {".png": _print_png, ".svg": _print_svg, ".pdf": _print_pdf}


def _all_but_labels(figure: Figure) -> list[Any]:
    """Return what is drawn beside the labels of points."""
    parts = [each for axis in figure.axes for each in axis.get_children() if each not in axis.texts]
    return [*figure.legends, *figure.texts, *parts]


@contextmanager
def _hidden(artists: Iterable[Any]) -> Iterator[None]:
    """Leave out artists that are visible while the block runs."""
    shown = [each for each in artists if each.get_visible()]
    for each in shown:
        each.set_visible(False)
    yield
    for each in shown:
        each.set_visible(True)


def _draw_panel(axis: Any, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    points = panel.points
    for group in dict.fromkeys(point.group for point in points if point.joined):
        line = sorted((p.x, 100 * p.value) for p in points if p.group == group and p.joined)
        axis.plot(*zip(*line, strict=True), color=looks[group]["color"], linewidth=1.0, alpha=0.55, zorder=2)
    _draw_intervals(axis, points, looks)
    for point in points:
        look = {**looks[point.group], **({"markersize": 7.5} if point.bold else {})}
        if point.hollow:
            look["markerfacecolor"] = "white"
        axis.plot(point.x, 100 * point.value, linestyle="none", zorder=3, **look)
    front = front_of(panel)
    axis.plot(
        [p.x for p in front],
        [100 * p.value for p in front],
        color="0.55",
        linewidth=0.9,
        linestyle="--",
        zorder=1,
    )
    title = "\n".join(textwrap.fill(line, TITLE_WIDTH, break_on_hyphens=False) for line in panel.title)
    axis.set_title(title, parse_math=False)
    values = [point.x for point in points]
    axis.set_xscale("log")
    space = 1.8 if max(values) > 10 * min(values) else 4.0  # for labels beside a few points
    limits = min(values) / space, max(values) * space
    axis.set_xlim(*limits)
    axis.margins(y=0.12)
    axis.xaxis.set_major_locator(FixedLocator(_ticks(*limits)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _draw_intervals(axis: Any, points: Sequence[Point], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the intervals of points, those of one colour at once, which is several times faster."""
    of_colour: dict[str, list[Point]] = {}
    for point in points:
        if point.low < point.value or point.high > point.value:
            of_colour.setdefault(looks[point.group]["color"], []).append(point)
    for colour, some in of_colour.items():
        below = [100 * (point.value - point.low) for point in some]
        above = [100 * (point.high - point.value) for point in some]
        axis.errorbar(
            [point.x for point in some],
            [100 * point.value for point in some],
            yerr=[below, above],
            fmt="none",
            ecolor=colour,
            capsize=2,
            elinewidth=0.9,
        )


def _ticks(low: float, high: float) -> list[float]:
    """Choose at most TICKS values such as 1, 2, 5, 10 on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) <= TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / TICKS)]


def front_of(panel: Panel) -> list[Point]:
    """Return the Pareto-optimal points of a panel, the cheapest first; of ours if there are some."""
    sign = -1.0 if panel.more_is_better else 1.0
    front: list[Point] = []
    own = any(not point.pale for point in panel.points) and not any(p.joined for p in panel.points)
    points = [point for point in panel.points if not (own and point.pale)]
    for point in sorted(points, key=lambda p: (sign * p.x, -p.value)):
        if not front or point.value > front[-1].value:
            front.append(point)
    return front


def _label_axes(figure: Figure, panels: Sequence[Panel], caption: str) -> None:
    metrics = sorted({panel.metric for panel in panels})
    figure.supylabel(f"{metrics[0]} (%)" if len(metrics) == 1 else "Score (%)", fontsize=9)
    characters = round(16 * figure.get_figwidth())
    below = panels[0].cost if not caption else f"{panels[0].cost}\n\n{textwrap.fill(caption, characters)}"
    figure.supxlabel(below, fontsize=9 if not caption else 7)


def _label_points(axis: Any, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write names beside points, and move them apart."""
    named = [point for point in panel.points if point.named]
    if len(named) > DIRECT and not any(point.joined for point in named):
        front = [point for point in front_of(panel) if point.named]
        named = front if len(front) <= DIRECT else [front[0], front[-1]]
    texts = [
        axis.text(
            point.x, 100 * point.value, textwrap.shorten(point.label, 34, placeholder="…"),
            fontsize=8 if point.bold else 7, fontweight="bold" if point.bold else "normal",
            color=_darker(looks[point.group]["color"]), parse_math=False, zorder=4,
            bbox={"facecolor": "white", "alpha": 0.6, "pad": 0.4, "linewidth": 0},
        )
        for point in named
    ]  # fmt: skip
    if texts:
        adjust_text(
            texts,
            x=[point.x for point in panel.points],
            y=[100 * point.value for point in panel.points],
            ax=axis,
            iter_lim=MOVES,
            expand=(1.15, 1.35),
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5},
        )


def _darker(colour: str) -> str:
    """Return a colour that is dark enough for text on white."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    luminance = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
    share = min(1.0, 0.40 / luminance) if luminance else 1.0
    return "#" + "".join(f"{round(channel * share):02x}" for channel in (red, green, blue))


def _looks(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """Choose the marker of each group, in the order of the panels: colour and shape both differ."""
    groups = list(dict.fromkeys(group for panel in panels for group in panel.groups))
    places = {group: place for place, group in enumerate(g for g in groups if not _is_pale(panels, g))}
    looks = {}
    for group in groups:
        place = places.get(group)
        if place is None:
            looks[group] = {"marker": "o", "color": OTHERS, "markersize": 3.5}
        else:
            colour = COLOURS[place % len(COLOURS)]
            marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
            looks[group] = {"marker": marker, "color": colour, "markersize": 5.5}
    return looks


def _is_pale(panels: Sequence[Panel], group: str) -> bool:
    points = [point for panel in panels for point in panel.points if point.group == group]
    return bool(points) and all(point.pale for point in points)


def _speaks_for_itself(panel: Panel) -> bool:
    """Return whether every group of a panel has a label in it."""
    named = {point.group for point in panel.points if point.named}
    few = len(panel.points) <= DIRECT or any(point.joined for point in panel.points)
    return few and all(point.pale or point.group in named for point in panel.points)


def _legend(panels: Sequence[Panel], looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    """Make one key per group, unless every point is labelled in its panel."""
    if all(_speaks_for_itself(panel) for panel in panels):
        return []
    kinds = dict.fromkeys(
        (point.group, point.hollow) for panel in panels for point in panel.points if not point.pale
    )
    if len(kinds) > KEYS:
        on_front = {point.group for panel in panels for point in front_of(panel)}
        kinds = {kind: None for kind in kinds if kind[0] in on_front}
    order = list(looks)
    return [
        Line2D(
            [], [], linestyle="none", label=group,
            **{**looks[group], **({"markerfacecolor": "white"} if hollow else {})},
        )
        for group, hollow in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[1]))
    ]  # fmt: skip
