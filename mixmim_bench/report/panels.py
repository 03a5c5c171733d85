"""What plots show: points in panels. No drawing, so it can be compared with what was drawn last."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
