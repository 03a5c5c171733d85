"""The content of the accuracy-FLOPs plot; `drawing` draws it when it has changed."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.report.leaderboard import Column, Leaderboard, Row
from mixmim_bench.report.text import one_line
from mixmim_bench.specs import RANDOM_INIT, Cost, digest

VERSION = 1  # raised when `drawing` draws the same panels in another way


@dataclass(frozen=True)
class Point:
    """A row in a panel: the GMACs of one image at the size of the run, and the score as a fraction."""

    label: str
    random_init: bool
    gmacs: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """A task and protocol; `labels` are those of all panels, which determine the colours."""

    title: Sequence[str]
    points: Sequence[Point]
    labels: Sequence[str]


def flops_vs_accuracy(board: Leaderboard, costs: Mapping[str, Cost], folder: Path) -> list[Path]:
    """Draw scores against FLOPs as PNG and SVG; returns their paths, or none without scores.

    Files that were drawn from the same panels and not modified since are left as they are.
    """
    paths = [folder / f"flops_vs_accuracy.{kind}" for kind in ("png", "svg")]
    note = folder / ".flops_vs_accuracy.json"
    drawn = panels(board, costs)
    if not drawn:
        for path in (*paths, note):
            path.unlink(missing_ok=True)  # of removed results
        return []
    drawn_from = digest([VERSION, metadata.version("matplotlib"), *map(dataclasses.asdict, drawn)], 32)
    if read_json(note) != {"drawn_from": drawn_from, "files": _stats(paths)}:
        from mixmim_bench.report.drawing import draw, save

        note.unlink(missing_ok=True)
        save(draw(drawn), paths)
        write_whole(note, json.dumps({"drawn_from": drawn_from, "files": _stats(paths)}).encode())
    return paths


def _stats(paths: Sequence[Path]) -> list[list[int]]:
    """Return size and time of each file, empty for one that is missing."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return [[stat.st_size, stat.st_mtime_ns] if stat else [] for stat in stats]


def panels(board: Leaderboard, costs: Mapping[str, Cost]) -> list[Panel]:
    """List the panels that have points, by protocol and task."""
    points = {column: _points(board, column, costs) for column in board.columns}
    labels = sorted({point.label for group in points.values() for point in group})
    order = sorted(filter(points.get, points), key=lambda column: (column[1], column[0]))
    return [Panel(_title(board, column), points[column], labels) for column in order]


def _title(board: Leaderboard, column: Column) -> list[str]:
    record = next(row.cells[column].record for row in board.rows if column in row.cells)
    return [one_line(record.task_title), one_line(record.protocol_title)]


def _points(board: Leaderboard, column: Column, costs: Mapping[str, Cost]) -> list[Point]:
    """Collect rows with a score in a column and a measured cost at the size of the run."""
    points = []
    for row in board.rows:
        cell = row.cells.get(column)
        cost = costs.get(cell.record.costs.get("run", "")) if cell else None
        if cell and cost and not row.settings:
            label = _label(row, board.rows)
            points.append(Point(label, row.random_init, cost.gmacs, cell.value, cell.low, cell.high))
    return points


def _label(row: Row, rows: Sequence[Row]) -> str:
    """Return the legend label of a row, including its weights if its model has several."""
    others = {other.weights for other in rows if other.model == row.model and not other.random_init}
    about = []
    if row.random_init:
        about.append(RANDOM_INIT)
    elif len(others) > 1:
        about.append(row.weights)
    if row.precision != "float32":
        about.append(row.precision)
    return one_line(f"{row.model} ({', '.join(about)})" if about else row.model)
