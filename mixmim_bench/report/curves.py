"""Draw lines over one variable: scores against shots, choices on val, and losses of trainings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mixmim_bench.report import style
from mixmim_bench.report.panels import Curve, CurvePanel
from mixmim_bench.report.style import STYLE
from mixmim_bench.report.text import cut

DIRECT = 9  # curves that are labelled at their ends where there is one panel
SHOWN_TICKS = 8  # values on a logarithmic axis that all have a tick
LABEL = 7  # points of the labels at the ends
LEADER = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
SIGNS = 9  # markers along a curve of many points


@matplotlib.rc_context(STYLE)
def draw_curves(panels: Sequence[CurvePanel], caption: str = "") -> Figure:
    """Draw one panel of curves each, with intervals as whiskers.

    The curves of a single panel are labelled at their ends where they are few, else there is a legend.
    """
    figure, axes = style.grid_of_panels(len(panels))
    looks = _looks(panels)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, looks)
    title = ""
    if len({tuple(panel.title) for panel in panels}) == 1:
        title = style.wrapped(panels[0].title, style.WIDE_TITLE)
    else:
        for axis, panel in zip(axes, panels, strict=True):
            axis.set_title(style.wrapped(panel.title), parse_math=False)
    x_titles, y_titles = ({getattr(panel, key) for panel in panels} for key in ("x_title", "y_title"))
    for axis, panel in zip(axes, panels, strict=True):  # what all share is written once
        axis.set_xlabel(panel.x_title if len(x_titles) > 1 else "")
        axis.set_ylabel(panel.y_title if len(y_titles) > 1 else "")
    style.set_caption(
        figure,
        x_titles.pop() if len(x_titles) == 1 else "",
        y_titles.pop() if len(y_titles) == 1 else "",
        caption,
    )
    direct = len(panels) == 1 and _few(panels[0])
    keys = [] if direct else _keys(panels, looks)
    style.add_legend(figure, keys, min(len(panels), style.PANELS_IN_A_ROW), title)
    if direct:
        _label_ends(axes[0], panels[0], looks)
    return figure


@matplotlib.rc_context(STYLE)
def draw_curves_on(panel: CurvePanel, axes: Any = None) -> Any:
    """Draw one panel on axes, or on those of a new figure, and return them."""
    if axes is None:
        axes = style.axes_of_new_figure()
    looks = _looks([panel])
    _draw_panel(axes, panel, looks)
    axes.set_title(style.wrapped(panel.title, style.WIDE_TITLE), parse_math=False)
    axes.set_xlabel(panel.x_title)
    axes.set_ylabel(panel.y_title)
    if _few(panel):
        _label_ends(axes, panel, looks)
    elif keys := _keys([panel], looks):
        for text in axes.legend(handles=keys, ncols=2, fontsize=LABEL).get_texts():
            text.set_parse_math(False)
    return axes


def _looks(panels: Sequence[CurvePanel]) -> dict[str, dict[str, Any]]:
    """Choose the look of each label, in the order of the panels."""
    labels = dict.fromkeys(c.label for panel in panels for c in panel.curves if not c.pale)
    return {label: style.look(place) for place, label in enumerate(labels)}


def _few(panel: CurvePanel) -> bool:
    return sum(not curve.pale for curve in panel.curves) <= DIRECT


def _draw_panel(axis: Any, panel: CurvePanel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for curve in panel.curves:
        if curve.pale:
            axis.plot(curve.x, curve.y, color=style.OTHERS, linewidth=0.7, zorder=1)
        else:
            _draw_curve(axis, curve, looks[curve.label], panel.markers)
    values = sorted({x for curve in panel.curves for x in curve.x})
    if panel.logarithmic:
        space = max(1.25, (values[-1] / values[0]) ** 0.04) if len(values) > 1 else 2.0
        exact = values if len(values) <= SHOWN_TICKS and _apart(values) else ()
        style.set_log_ticks(axis, values[0] / space, values[-1] * space, exact)
    elif panel.ticks:
        axis.set_xticks(range(len(panel.ticks)), map(cut, panel.ticks), rotation=90, parse_math=False)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=values[-1] >= 2))
    axis.margins(y=0.12)
    style.set_score_ticks(axis)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(values: Sequence[float]) -> bool:
    """Whether the ticks of values on a logarithmic axis are far enough from each other to be read."""
    whole = values[-1] / values[0]
    closest = min((b / a for a, b in pairwise(values)), default=10.0)
    return closest ** (SHOWN_TICKS + 2) >= whole


def _draw_curve(axis: Any, curve: Curve, look: Mapping[str, Any], markers: bool) -> None:
    look = {**(style.hollow(look) if curve.hollow else look), "markersize": 4.0}
    every = 1 if markers else max(1, len(curve.x) // SIGNS)
    axis.plot(curve.x, curve.y, linewidth=1.1, markevery=every, zorder=3, **look)
    if curve.low:
        axis.errorbar(
            curve.x,
            curve.y,
            yerr=[
                [y - low for y, low in zip(curve.y, curve.low, strict=True)],
                [high - y for y, high in zip(curve.y, curve.high, strict=True)],
            ],
            fmt="none",
            ecolor=look["color"],
            alpha=0.6,
            capsize=1.5,
            elinewidth=0.7,
            zorder=2,
        )
    if curve.chosen >= 0:
        x, y = curve.x[curve.chosen], curve.y[curve.chosen]
        axis.axvline(x, color="0.55", linewidth=0.9, linestyle="--", zorder=1)
        axis.plot(
            [x], [y], marker="o", markersize=10, color=look["color"], markerfacecolor="none", linestyle="none"
        )


def _label_ends(axis: Any, panel: CurvePanel, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the name of each curve beside its end, moved apart where ends are close."""
    named = sorted((c for c in panel.curves if c.label and not c.pale), key=lambda curve: curve.y[-1])
    if not named:
        return
    axis.figure.draw_without_rendering()  # limits and sizes are known
    low, high = axis.get_ylim()
    points = axis.get_window_extent().height * 72 / axis.figure.dpi
    apart = (high - low) * 1.25 * LABEL / points
    places = spread([curve.y[-1] for curve in named], apart, low, high)
    for curve, place in zip(named, places, strict=True):
        axis.annotate(
            cut(curve.label),
            xy=(curve.x[-1], curve.y[-1]),
            xytext=(1.04, place),
            textcoords=axis.get_yaxis_transform(),
            fontsize=LABEL,
            color=style.darker(looks[curve.label]["color"]),
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops=LEADER,
        )


def spread(values: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Move ascending values at least `apart`, as little as possible, within bounds if there is room."""
    groups: list[list[float]] = []  # the sum of where the first of a group would be, and its size
    for value in values:
        groups.append([value, 1])
        while len(groups) > 1:
            (above, size), (total, count) = groups[-1], groups[-2]
            if above / size - total / count >= apart * count:
                break
            groups[-2:] = [[total + above - apart * count * size, count + size]]
    placed = []
    for total, count in groups:
        most = max(low, high - apart * (count - 1))
        first = min(max(total / count, low), most)
        placed += [first + apart * place for place in range(int(count))]
    for place in range(1, len(placed)):
        placed[place] = max(placed[place], placed[place - 1] + apart)
    return placed


def _keys(panels: Sequence[CurvePanel], looks: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    hollow = {c.label: c.hollow for panel in panels for c in panel.curves if not c.pale}
    return [
        Line2D(
            [], [], linewidth=1.1, label=cut(label),
            **(style.hollow(looks[label]) if hollow[label] else looks[label]),
        )
        for label in looks if label
    ]  # fmt: skip
