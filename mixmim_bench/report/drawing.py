"""Draw scores against costs in the style of a paper: readable at column width and by colour-blind readers."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from adjustText import adjust_text
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mixmim_bench.report import style
from mixmim_bench.report.panels import Panel, Point
from mixmim_bench.report.style import OTHERS, STYLE
from mixmim_bench.report.text import cut
from mixmim_bench.scoring.metrics import lower_is_better

DIRECT = 9  # points that are labelled in a panel; of more, those on the front
KEYS = 24  # in a legend; of more groups, those on a front
MOVES = 300  # of labels, each time the same


@matplotlib.rc_context(STYLE)
def draw(panels: Sequence[Panel], caption: str = "") -> Figure:
    """Draw one panel per task and protocol, with one point and interval per model.

    A line joins the Pareto-optimal models: no other is better at the same cost or less. Points are labelled
    directly where they are few, else those on the front. Random weights have open markers, points in the
    background are grey.
    """
    figure, axes = style.grid_of_panels(len(panels))
    looks = _looks(panels)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, looks)
    metrics = sorted({panel.metric for panel in panels})
    y_title = f"{metrics[0]} (%)" if len(metrics) == 1 else "Score (%)"
    if len(metrics) > 1:
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_ylabel(panel.metric, fontsize=7)
    style.set_caption(figure, panels[0].cost, y_title, caption)
    style.add_legend(figure, _legend(panels, looks), min(len(panels), style.PANELS_IN_A_ROW))
    with style.hidden(
        each for axis in axes for each in (*axis.lines, *axis.collections)
    ):  # not of the layout
        figure.draw_without_rendering()  # sizes are known, and labels can be placed
    figure.set_layout_engine("none")
    with style.hidden(style.all_but_labels(figure)), style.hidden(axes):  # adjust_text draws the whole figure
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_visible(True)
            _label_points(axis, panel, looks)
            axis.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def draw_on(panel: Panel, axes: Any = None) -> Any:
    """Draw one panel on axes, or on those of a new figure, and return them."""
    if axes is None:
        axes = style.axes_of_new_figure()
    looks = _looks([panel])
    _draw_panel(axes, panel, looks)
    axes.set_xlabel(panel.cost)
    axes.set_ylabel(f"{panel.metric} (%)")
    axes.figure.draw_without_rendering()
    _label_points(axes, panel, looks)
    return axes


def _draw_panel(axis: Any, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    points = panel.points
    for group in dict.fromkeys(point.group for point in points if point.joined):
        line = sorted((p.x, 100 * p.value) for p in points if p.group == group and p.joined)
        axis.plot(*zip(*line, strict=True), color=looks[group]["color"], linewidth=1.0, alpha=0.55, zorder=2)
    _draw_intervals(axis, points, looks)
    for point in points:
        look = {**looks[point.group], **({"markersize": 7.5} if point.bold else {})}
        look = style.hollow(look) if point.hollow else look
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
    axis.set_title(style.wrapped(panel.title), parse_math=False)
    values = [point.x for point in points]
    space = 1.8 if max(values) > 10 * min(values) else 4.0  # for labels beside a few points
    style.set_log_ticks(axis, min(values) / space, max(values) * space)
    axis.margins(y=0.12)
    style.set_score_ticks(axis)


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


def front_of(panel: Panel) -> list[Point]:
    """Return the Pareto-optimal points of a panel, the cheapest first; of ours if there are some."""
    sign = -1.0 if panel.more_is_better else 1.0
    up = -1.0 if lower_is_better(panel.metric) else 1.0
    front: list[Point] = []
    own = any(not point.pale for point in panel.points) and not any(p.joined for p in panel.points)
    points = [point for point in panel.points if not (own and point.pale)]
    for point in sorted(points, key=lambda p: (sign * p.x, -up * p.value)):
        if not front or up * point.value > up * front[-1].value:
            front.append(point)
    return front


def _label_points(axis: Any, panel: Panel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write names beside points, and move them apart."""
    named = [point for point in panel.points if point.named]
    if len(named) > DIRECT and not any(point.joined for point in named):
        front = [point for point in front_of(panel) if point.named]
        named = front if len(front) <= DIRECT else [front[0], front[-1]]
    texts = [
        axis.text(
            point.x, 100 * point.value, cut(point.label),
            fontsize=8 if point.bold else 7, fontweight="bold" if point.bold else "normal",
            color=style.darker(looks[point.group]["color"]), parse_math=False, zorder=4,
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
            looks[group] = style.look(place)
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
            **(style.hollow(looks[group]) if hollow else looks[group]),
        )
        for group, hollow in sorted(kinds, key=lambda kind: (order.index(kind[0]), kind[1]))
    ]  # fmt: skip
