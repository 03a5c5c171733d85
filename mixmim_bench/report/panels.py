"""What plots show, as values: no drawing, so it can be compared with what was drawn last."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Line = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model in a panel: what it costs, and its score as a fraction with its interval."""

    label: str
    group: str  # of one colour and marker
    x: float
    value: float
    low: float
    high: float
    hollow: bool = False  # random weights
    pale: bool = False  # in the background
    named: bool = True  # whether its label may stand beside it
    bold: bool = False  # larger, as what a figure is about
    joined: bool = False  # whether a line joins the points of its group


def exact(value: float, **fields: Any) -> Point:
    """Return a point without an interval."""
    return Point(value=value, low=value, high=value, **fields)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A task and protocol."""

    title: Sequence[str]  # lines
    points: Sequence[Point]
    groups: Sequence[str]  # of all panels, which determine the colours
    cost: str  # what x is, with its unit
    metric: str
    more_is_better: bool = False  # of x, as images per second


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line through points, in the units of its panel."""

    label: str  # '' for the only one of a panel
    x: Line  # ascending
    y: Line
    low: Line = ()  # of the intervals; empty without any
    high: Line = ()
    hollow: bool = False  # random weights
    pale: bool = False  # in the background, without a label
    chosen: int = -1  # the place of the point that was chosen; -1: none was


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """Curves over one variable."""

    title: Sequence[str]  # lines
    curves: Sequence[Curve]
    x_title: str
    y_title: str
    logarithmic: bool = False  # the horizontal axis
    ticks: Sequence[str] = ()  # names of x = 0, 1, …
    markers: bool = True  # at every point; else at a few, to tell curves apart


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A row of a list: a value with its interval, in the units of the list."""

    label: str
    value: float
    low: float
    high: float
    group: str = ""  # of one colour and marker


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Named values below each other."""

    title: Sequence[str]  # lines
    dots: Sequence[Dot]  # from top to bottom
    x_title: str
    groups: Sequence[str] = ()  # those of the legend, which determine the colours
    zero: bool = False  # whether a line marks 0
    bars: bool = False  # bars from 0, as of counts, instead of dots
    gap: int = 0  # after so many rows others are left out; 0: none are
    gap_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Which classes (rows) were taken for which (columns): shares of a row, None for one without images."""

    title: Sequence[str]  # lines
    names: Sequence[str]
    shares: Sequence[Sequence[float] | None]


Figures = Sequence[Panel] | Sequence[CurvePanel] | Dots | Matrix
