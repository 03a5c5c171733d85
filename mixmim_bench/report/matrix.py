"""Draw a confusion matrix."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from mixmim_bench.report import style
from mixmim_bench.report.panels import Matrix
from mixmim_bench.report.style import STYLE
from mixmim_bench.report.text import cut

SHADES = ("#FFFFFF", "#C6DDEF", "#7DB4DA", "#0072B2", "#00263F")  # darker and darker, in any colour vision
WRITTEN = 12  # classes, up to which the shares are written into their cells
ABSENT = "0.85"


@matplotlib.rc_context(STYLE)
def draw_matrix(matrix: Matrix) -> Figure:
    """Draw a matrix as a figure."""
    side = min(3.6 + 0.11 * len(matrix.names), 7.5)
    axes = style.axes_of_new_figure(width=side + 0.6, height=side)
    _draw(matrix, axes)
    return axes.figure


@matplotlib.rc_context(STYLE)
def draw_matrix_on(matrix: Matrix, axes: Any = None) -> Any:
    """Draw a matrix on axes, or on those of a new figure, and return them."""
    if axes is None:
        return draw_matrix(matrix).axes[0]
    _draw(matrix, axes)
    return axes


def _draw(matrix: Matrix, axes: Any) -> None:
    count = len(matrix.names)
    shares = np.array([[np.nan] * count if row is None else row for row in matrix.shares])
    shades = LinearSegmentedColormap.from_list("shares", SHADES).with_extremes(bad=ABSENT)
    scale = PowerNorm(0.5, vmin=0.0, vmax=100.0)  # few confusions are seen as well
    image = axes.imshow(100 * shares, cmap=shades, norm=scale, interpolation="nearest")
    axes.grid(False)
    small = 7 if count <= 30 else 5.5
    names = [cut(name, 22) for name in matrix.names]
    axes.set_xticks(range(count), names, rotation=90, fontsize=small, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=small, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(style.wrapped(matrix.title, style.WIDE_TITLE), parse_math=False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("share of the true class (%)", fontsize=8)
    bar.outline.set_visible(False)
    if count <= WRITTEN:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5,
                color="white" if share > 0.3 else "black",
            )  # fmt: skip
