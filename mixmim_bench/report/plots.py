"""Accuracy against FLOPs, as a paper would print it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixmim_bench.protocols import load_protocols
from mixmim_bench.report.tables import RANDOM_INIT
from mixmim_bench.specs import Cost, RunRecord

MARKERS = "osD^vP*X<>"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mixmim-bench",
}


def flops_vs_accuracy(records: Iterable[RunRecord], gmacs: Mapping[str, float], folder: Path) -> list[Path]:
    """Draw one panel a protocol, one colour a task, one point a model with its 95 % interval.

    gmacs: run id -> GMACs of one image at the size of the run. Weights that were never trained have open
    markers. Writes PNG and SVG, and returns their paths.
    """
    points = [r for r in records if not r.error and r.run_id in gmacs]
    if not points:
        return []
    protocols = sorted({(r.protocol["name"], r.task["kind"]) for r in points})
    tasks = sorted({r.task["name"]: r.task["title"] for r in points}.items())
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"flops_vs_accuracy.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.5 + 3.2 * len(protocols), 3.6), layout="constrained")
        axes = figure.subplots(1, len(protocols), sharex=True, sharey=True, squeeze=False)[0]
        for axis, protocol in zip(axes, protocols, strict=True):
            of_protocol = [r for r in points if r.protocol["name"] == protocol[0]]
            _panel(axis, of_protocol, [name for name, _ in tasks], gmacs)
            axis.set_title(load_protocols()[protocol].title)
        _flops_axis(axes[0], [gmacs[r.run_id] for r in points])
        figure.supxlabel("FLOPs of one image (billion multiply-adds)", fontsize=9)
        axes[0].set_ylabel("Accuracy (%)")
        keys = _legend([title for _, title in tasks], points)
        figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), 3))
        for path in paths:
            figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _panel(axis: Any, records: Sequence[RunRecord], tasks: Sequence[str], gmacs: Mapping[str, float]) -> None:
    named: set[str] = set()
    for record in sorted(records, key=lambda r: (r.task["name"], gmacs[r.run_id])):
        look = _look(tasks.index(record.task["name"]), record.model["weights"] == RANDOM_INIT)
        score = record.scores[record.task["metric"]]
        x, y = gmacs[record.run_id], 100 * score["value"]
        error = [[y - 100 * score["low"]], [100 * score["high"] - y]]
        axis.errorbar(x, y, yerr=error, fmt="none", ecolor=look["color"], capsize=2.5, elinewidth=1)
        axis.plot(x, y, linestyle="none", **look)
        if record.model["name"] not in named:
            named.add(record.model["name"])
            axis.annotate(
                record.model["name"], (x, y), xytext=(8, 0), textcoords="offset points", va="center"
            )


def _look(task: int, random_init: bool) -> dict[str, Any]:
    colour = f"C{task % 10}"
    return {
        "marker": MARKERS[task % len(MARKERS)],
        "color": colour,
        "markerfacecolor": "white" if random_init else colour,
        "markersize": 6,
    }


def _flops_axis(axis: Any, values: Sequence[float]) -> None:
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 2.2, max(values) * 4)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _legend(titles: Sequence[str], points: Sequence[RunRecord]) -> list[Line2D]:
    keys = [Line2D([], [], linestyle="none", label=t, **_look(i, False)) for i, t in enumerate(titles)]
    if any(r.model["weights"] == RANDOM_INIT for r in points):
        open_marker = {**_look(0, True), "color": "0.4"}
        keys.append(Line2D([], [], linestyle="none", label="open: random init", **open_marker))
    return keys


def gmacs_of_runs(records: Iterable[RunRecord], costs: Iterable[Cost]) -> dict[str, float]:
    """Find the measured GMACs of each run: those of its architecture at its image size."""
    known = {(cost.arch, cost.image_size): cost.gmacs for cost in costs}
    found = {}
    for record in records:
        key = (record.model["arch"], record.image_size)
        if key in known:
            found[record.run_id] = known[key]
    return found
