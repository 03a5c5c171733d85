"""The style of all plots: colours, markers, fonts, ticks and file formats."""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixmim_bench.atomic import write_whole

# Okabe and Ito's colours without yellow, which is pale on white (jfly.uni-koeln.de/color)
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>*"
OTHERS = "#B4B4B4"  # the background
PANELS_IN_A_ROW = 4
TITLE_WIDTH = 30  # characters that fit above a panel
WIDE_TITLE = 64  # above a figure
TICKS = 4
DPI = 200  # of PNG
CHARACTER, KEY = 4.6, 34.0  # points that a character of a legend takes, and its marker
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
    "legend.title_fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mixmim-bench",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names may hold a $
    "text.usetex": False,
}


@matplotlib.rc_context(STYLE)
def save(figure: Figure, paths: Sequence[Path]) -> None:
    """Save a figure in the formats given by the suffixes, each file atomically and without a date.

    `Figure.savefig` would draw everything twice per format. Only labels need that: the lines from them to
    their points begin at the boxes of the last drawing. Fonts are embedded when a PDF is closed, so the first
    drawing is left open.
    """
    for path in paths:
        print_to = _PRINTERS[path.suffix]
        with hidden(all_but_labels(figure)):
            print_to(figure, PdfPages(io.BytesIO()) if path.suffix == ".pdf" else io.BytesIO())
        drawn = io.BytesIO()
        print_to(figure, drawn)
        write_whole(path, drawn.getvalue())


def _print_png(figure: Figure, file: io.BytesIO) -> None:
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def _print_svg(figure: Figure, file: io.BytesIO) -> None:
    figure.set_dpi(DPI)
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})


def _print_pdf(figure: Figure, file: io.BytesIO | PdfPages) -> None:
    figure.set_dpi(DPI)
    FigureCanvasPdf(figure).print_pdf(file, metadata={"CreationDate": None})


_PRINTERS: Mapping[str, Callable[[Figure, Any], None]] = {
    ".png": _print_png,
    ".svg": _print_svg,
    ".pdf": _print_pdf,
}


def all_but_labels(figure: Figure) -> list[Any]:
    """Return what is drawn beside the labels of points."""
    parts = [each for axis in figure.axes for each in axis.get_children() if each not in axis.texts]
    return [*figure.legends, *figure.texts, *parts]


@contextmanager
def hidden(artists: Iterable[Any]) -> Iterator[None]:
    """Leave out artists that are visible while the block runs."""
    shown = [each for each in artists if each.get_visible()]
    for each in shown:
        each.set_visible(False)
    yield
    for each in shown:
        each.set_visible(True)


def grid_of_panels(count: int) -> tuple[Figure, list[Any]]:
    """Return a figure with axes for some panels, as wide as a column or a page."""
    across = min(count, PANELS_IN_A_ROW)
    down = math.ceil(count / across)
    wide, tall = (6.2, 4.2) if count == 1 else (max(2.7 * across, 5.2), 0.9 + 2.5 * down)
    figure = Figure(figsize=(wide, tall), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def axes_of_new_figure(width: float = 5.2, height: float = 3.6) -> Any:
    """Return the axes of a new figure, as wide as a column."""
    return Figure(figsize=(width, height), layout="constrained").subplots()


def look(place: int) -> dict[str, Any]:
    """Return the marker of a group: of groups that are next to each other colour and shape both differ."""
    n = len(COLOURS)
    turn = place // n + place // (5 * n)  # so that no look returns before all have been used
    return {"marker": MARKERS[(place + turn) % len(MARKERS)], "color": COLOURS[place % n], "markersize": 5.5}


def hollow(look_of_group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the look of random weights."""
    return {**look_of_group, "markerfacecolor": "white"}


def darker(colour: str) -> str:
    """Return a colour that is dark enough for text on white."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    luminance = (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255
    share = min(1.0, 0.40 / luminance) if luminance else 1.0
    return "#" + "".join(f"{round(channel * share):02x}" for channel in (red, green, blue))


def wrapped(lines: Sequence[str], width: int = TITLE_WIDTH) -> str:
    """Return a title on as many lines as it needs."""
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines)


def set_caption(figure: Figure, x_title: str, y_title: str, caption: str = "") -> None:
    """Write what the axes of all panels are, and a caption below."""
    figure.supylabel(y_title, fontsize=9)
    characters = round(16 * figure.get_figwidth())
    below = x_title if not caption else f"{x_title}\n\n{textwrap.fill(caption, characters)}"
    figure.supxlabel(below, fontsize=9 if not caption else 7)


def add_legend(figure: Figure, keys: Sequence[Line2D], across: int, title: str = "") -> None:
    """Write a title above all panels, and a legend below it if there are keys."""
    if not keys:
        figure.suptitle(title, fontsize=9, parse_math=False)
        return
    widest = max(len(str(key.get_label())) for key in keys)
    fitting = int(72 * figure.get_figwidth() / (CHARACTER * widest + KEY))
    columns = max(1, min(len(keys), 2 * across, 5, fitting))
    legend = figure.legend(handles=list(keys), loc="outside upper center", ncols=columns, title=title or None)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)


def set_log_ticks(axis: Any, low: float, high: float, exact: Sequence[float] = ()) -> None:
    """Make the horizontal axis logarithmic, with few ticks as plain numbers: `exact` ones if they fit."""
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator(list(exact) or log_ticks(low, high)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def set_score_ticks(axis: Any) -> None:
    """Give the vertical axis few round ticks."""
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def log_ticks(low: float, high: float) -> list[float]:
    """Choose at most TICKS values such as 1, 2, 5, 10 on a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) <= TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / TICKS)]
