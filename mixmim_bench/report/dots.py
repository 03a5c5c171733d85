"""Draw named values below each other: scores of classes, differences over tasks, frequent confusions."""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mixmim_bench.report import style
from mixmim_bench.report.panels import Dot, Dots
from mixmim_bench.report.style import STYLE
from mixmim_bench.report.text import cut

ROW = 0.17  # inches
BAR = "#0072B2"
LABEL = 56  # characters


@matplotlib.rc_context(STYLE)
def draw_dots(dots: Dots) -> Figure:
    """Draw a list as a figure that is as wide as a column, and as high as it needs."""
    rows = len(dots.dots) + bool(dots.gap)
    width = 6.2 if dots.bars else 5.2  # whose labels are longer
    axes = style.axes_of_new_figure(width, 1.1 + ROW * rows + 0.25 * bool(dots.groups))
    _draw(dots, axes)
    style.add_legend(axes.figure, _keys(dots), 2, style.wrapped(dots.title, style.WIDE_TITLE))
    return axes.figure


@matplotlib.rc_context(STYLE)
def draw_dots_on(dots: Dots, axes: Any = None) -> Any:
    """Draw a list on axes, or on those of a new figure, and return them."""
    if axes is None:
        return draw_dots(dots).axes[0]
    _draw(dots, axes)
    axes.set_title(style.wrapped(dots.title, style.WIDE_TITLE), parse_math=False)
    if keys := _keys(dots):
        for text in axes.legend(handles=keys, fontsize=7).get_texts():
            text.set_parse_math(False)
    return axes


def _draw(dots: Dots, axes: Any) -> None:
    looks = _looks(dots)
    places = [-(place + bool(dots.gap and place >= dots.gap)) for place in range(len(dots.dots))]
    for place, dot in zip(places, dots.dots, strict=True):
        if dots.bars:
            axes.barh(place, dot.value, height=0.7, color=BAR, zorder=2)
        else:
            _draw_dot(axes, place, dot, looks[dot.group])
    if dots.bars:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    if dots.zero:
        axes.axvline(0.0, color="0.35", linewidth=0.9, zorder=1)
    ticks, labels = list(places), [cut(dot.label, LABEL) for dot in dots.dots]
    if dots.gap:
        ticks, labels = [*ticks, -dots.gap], [*labels, dots.gap_label]
    axes.set_yticks(ticks, labels, fontsize=7, parse_math=False)
    axes.set_ylim(min(ticks) - 0.7, 0.7)
    axes.set_xlabel(dots.x_title, parse_math=False)


def _draw_dot(axes: Any, place: float, dot: Dot, look: Mapping[str, Any]) -> None:
    if dot.low < dot.value or dot.high > dot.value:
        error = [[dot.value - dot.low], [dot.high - dot.value]]
        axes.errorbar(
            dot.value, place, xerr=error, fmt="none", ecolor=look["color"], capsize=1.5, elinewidth=0.9
        )
    axes.plot(dot.value, place, linestyle="none", zorder=3, **{**look, "markersize": 4.0})


def _looks(dots: Dots) -> dict[str, dict[str, Any]]:
    groups = dots.groups or dict.fromkeys(dot.group for dot in dots.dots)
    return {group: style.look(place if dots.groups else 1) for place, group in enumerate(groups)}


def _keys(dots: Dots) -> list[Line2D]:
    """Make one key per group that has dots."""
    looks, there = _looks(dots), {dot.group for dot in dots.dots}
    return [
        Line2D([], [], linestyle="none", label=cut(group, 60), **looks[group])
        for group in dots.groups
        if group in there
    ]
