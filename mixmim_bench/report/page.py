"""The report page: one HTML file with table, plot, comparisons and records, which opens without a network.

Everything that a record says reaches the page as JSON in a data block and is shown as text. The scripts are
DataTables (from itables), Plotly and `assets/page.js`; a content security policy allows these alone, by hash.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from mixmim_bench.errors import BenchError
from mixmim_bench.report.averages import EXPLAINED, Average, averages
from mixmim_bench.report.contents import Contents
from mixmim_bench.report.controls import notes_of, shown
from mixmim_bench.report.leaderboard import Cell, Leaderboard
from mixmim_bench.report.plots import AXES, label_of, places, published_places
from mixmim_bench.report.published import Published, of_board
from mixmim_bench.report.runplots import read_logs
from mixmim_bench.report.text import one_line
from mixmim_bench.scoring.metrics import lower_is_better
from mixmim_bench.scoring.statistics import holm
from mixmim_bench.specs import Cost, RunRecord
from mixmim_bench.suite.records import RunStore

ASSETS = Path(__file__).parent / "assets"
PAIRED = 12  # rows of which every two are compared; of more, the best of each column with the others
PICTURES = 12_000_000  # bytes of pictures in the page; further ones are linked
CURVE = 200  # points of a training curve
COST = ("params_m", "gmacs", "images_per_s", "peak_memory_mb")
LISTED = 10  # scores in a note
MODEL = ("arch", "kwargs", "weights", "precision", "seed")
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob: 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)


def to_html(contents: Contents, published: bool = False) -> str:
    """Return the page of a results folder; raises BenchError if a library of the page is missing.

    published: whether results of others are in it, apart from the measured ones.
    """
    scripts = [_datatables(), _plotly(), _asset("page.js")]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = POLICY.format(scripts=" ".join(f"'sha256-{each}'" for each in hashes))
    parts = {
        "policy": html.escape(policy, quote=True),
        "style": f"{_library('itables', 'html/dt_bundle.css')}\n{_asset('page.css')}",
        "data": embedded(data_of(contents, published)),
        "datatables": scripts[0],
        "plotly": scripts[1],
        "page": scripts[2],
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def embedded(value: Any) -> str:
    """Serialise JSON for a data block of HTML, which no text in it can end."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# -- libraries ---------------------------------------------------------------------------------------


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _library(package: str, file: str) -> str:
    """Read a file of an installed package, without importing it."""
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin else Path(file)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BenchError(
            f"report.html needs {file} of the package {package}, which is not there; "
            f"run pip install --upgrade {package}"
        ) from error


def _plotly() -> str:
    return _library("plotly", "package_data/plotly.min.js")


def _datatables() -> str:
    """Return DataTables as a script that sets `DataTable`, from the module of itables."""
    module = _library("itables", "html/dt_bundle.js")
    script, count = re.subn(r"export\s*\{[^}]*?([\w$]+) as default[^}]*\};?", r"window.DataTable=\1;", module)
    if count != 1:
        raise BenchError("this version of itables has another bundle than expected; report it, please")
    return f"(()=>{{{script}\n}})();"


# -- data --------------------------------------------------------------------------------------------


def data_of(contents: Contents, published: bool = False) -> dict[str, Any]:
    """Return all that the page shows, as JSON values; scores are fractions."""
    board, costs, store = contents.board, contents.costs, contents.store
    pictures, logged = _Pictures(store), store.logged()
    of_means = [averages(board, mean) for mean in board.means]
    return {
        "axes": {name: {"title": axis.short, "more": axis.more_is_better} for name, axis in AXES.items()},
        "columns": [*_columns(board), *_means(board)],
        "rows": [_row(contents, place, [of[place] for of in of_means]) for place in range(len(board.rows))],
        "pairs": _pairs(contents),
        "records": {
            record.run_id: {
                **_record(record, costs),
                "picture": pictures.of(record),
                "curves": _curves(store.logs_of(record.run_id)) if record.run_id in logged else {},
            }
            for record in contents.records
        },
        "failed": sorted(record.run_id for record in contents.records if record.error),
        "broken": [one_line(text) for text in contents.broken],
        "older": board.left_out,
        "notes": _notes(contents),
        "smoke": len(contents.smoke.rows),
        "controls": _controls(contents),
        "published": _published(board) if published else None,
    }


def _columns(board: Leaderboard) -> list[dict[str, Any]]:
    """Describe the columns of scores; lower: whether the lowest score is the best."""
    ranked = {
        column: {
            "name": " ".join(column),
            "task": column[0],
            "protocol": column[1],
            "metric": board.first(column).metric,
            "suites": list(board.first(column).suites),
            "kind": "ranked",
            "lower": lower_is_better(board.first(column).metric),
        }
        for column in board.columns
    }
    further = [
        {
            **ranked[column],
            "name": " ".join((*column, metric)),
            "metric": metric,
            "kind": "further",
            "lower": lower_is_better(metric),
        }
        for column, metric in board.other_metrics
    ]
    return [*ranked.values(), *further]


def _means(board: Leaderboard) -> list[dict[str, Any]]:
    """Describe the columns of averages: the means, and then above chance and rank of each of them."""
    means = [
        {
            "name": mean.name,
            "task": f"mean {mean.suite}".strip(),
            "protocol": mean.protocol,
            "metric": mean.metric,
            "suites": [mean.suite] if mean.suite else [],
            "kind": "mean",
            "lower": lower_is_better(mean.metric),
        }
        for mean in board.means
    ]
    further = [
        {**column, "name": f"{column['name']} {title}", "kind": kind, "lower": kind == "rank"}
        for column in means
        for kind, title in (("above chance", "above chance"), ("rank", "rank"))
    ]
    return [*means, *further]


def _controls(contents: Contents) -> dict[str, Any]:
    rows = shown(contents.controls)
    return {
        "titles": list(rows[0]) if rows else [],
        "rows": [list(row.values()) for row in rows],
        "notes": notes_of(contents.controls),
    }


def _published(board: Leaderboard) -> dict[str, Any] | None:
    """Return the results of others by model and pretraining, with their columns; None for none."""
    found = of_board(board)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for at, results in enumerate(found.values()):
        for each in results:
            row = rows.setdefault((each.model, each.pretrain_data), _published_row(each, len(found)))
            row["cells"][at] = {
                "value": each.value / 100,
                "x": published_places(each),
                "link": each.link,
                "source": one_line(each.source),
                "note": one_line(each.note),
            }
    columns = [board.columns.index(column) for column in found]
    return {"columns": columns, "rows": list(rows.values())} if rows else None


def _published_row(each: Published, columns: int) -> dict[str, Any]:
    return {
        "model": one_line(each.model),
        "pretraining": one_line(each.pretrain_data),
        "cost": {"params_m": each.params_m, "gmacs": each.gmacs},
        "cells": [None] * columns,
    }


def _notes(contents: Contents) -> list[str]:
    """Return what the table alone does not say."""
    board = contents.board
    lists = {
        "Speed and memory: ": "; ".join(board.machines(contents.costs)),
        "Not decided, since predictions are missing: ": ", ".join(
            sorted(" ".join(column) for column, marks in contents.marks.items() if marks.undecided)
        ),
        "Models are in another order by: ": ", ".join(
            " ".join((*column, metric)) for column, metric in board.disagreements()
        ),
        "Unreadable test images were skipped: ": ", ".join(board.skipped()),
        "Not significantly better than a guess: ": _guesses(board),
    }
    notes = [one_line(f"{title}{text}.") for title, text in lists.items() if text]
    notes += [one_line(mean.note) for mean in board.means if mean.left_out]
    return [*notes, *([f"Averages over tasks are {EXPLAINED}."] if board.means else [])]


def _guesses(board: Leaderboard) -> str:
    """List the scores that always predicting the most frequent classes may reach too."""
    found = [
        f"{label_of(row, board)} on {' '.join(column)}"
        for row in board.rows
        for column, cell in row.cells.items()
        if cell.is_a_guess()
    ]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return f"{', '.join(found[:LISTED])}{more}"


def _row(contents: Contents, place: int, found: Sequence[Average]) -> dict[str, Any]:
    board, costs = contents.board, contents.costs
    row = board.rows[place]
    cost = row.cost(costs)
    marks = {column: mark.of_row.get(place, "") for column, mark in contents.marks.items()}
    cells = [
        *(_cell(row.cells.get(column), costs, marks.get(column, "")) for column in board.columns),
        *(_cell(board.other(row, column, metric), costs) for column, metric in board.other_metrics),
        *(_cell(row.mean_cell(mean.tasks, mean.protocol), costs, is_mean=True) for mean in board.means),
        *(_number(value) for each in found for value in (each.normalised, each.rank)),
    ]
    return {
        "model": one_line(row.model),
        "weights": one_line(row.weights),
        "variant": one_line(row.variant),
        "label": label_of(row, board),
        "random": row.random_init,
        "settings": bool(row.settings),
        "cost": {name: getattr(cost, name) if cost else None for name in COST},
        "uncounted": ", ".join(cost.uncounted) if cost else "",
        "cells": cells,
    }


def _cell(
    cell: Cell | None, costs: Mapping[str, Cost], mark: str = "", is_mean: bool = False
) -> dict[str, Any] | None:
    """Return a score with its runs (none for a mean) and what it costs at the size of the run."""
    if cell is None:
        return None
    return {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "seeds": cell.seeds,
        "mark": mark,
        "runs": [] if is_mean else [record.run_id for record in cell.records],
        "x": places(cell, costs),
    }


def _number(value: float | None) -> dict[str, Any] | None:
    """Return an average without an interval, runs or place in the plot."""
    return None if value is None else {"value": value, "runs": [], "x": {}}


def _pairs(contents: Contents) -> dict[str, list[float]]:
    """Return paired differences: 'ROW-ROW-COLUMN' -> difference, low, high, p, p corrected over columns."""
    board = contents.board
    found = {}
    for (a, b), columns in _to_compare(contents).items():
        first, second = board.rows[a].cells, board.rows[b].cells
        tested = {}
        for place in columns:
            column = board.columns[place]
            each = contents.pairs.difference(first[column], second[column])
            if each is not None:
                tested[place] = each
        corrected = holm([each.p for each in tested.values()])
        for (place, each), p in zip(tested.items(), corrected, strict=True):
            found[f"{a}-{b}-{place}"] = [each.value, each.low, each.high, each.p, float(p)]
    return found


def _to_compare(contents: Contents) -> dict[tuple[int, int], list[int]]:
    """Return the places of two rows -> those of columns; of many rows only what the marks have tested."""
    board = contents.board
    rows = [place for place, row in enumerate(board.rows) if not row.settings]
    if len(rows) <= PAIRED:
        return {(a, b): _shared(board, a, b) for a, b in combinations(rows, 2)}
    places = {
        row.cells[column].key: (place, at)
        for place, row in enumerate(board.rows)
        for at, column in enumerate(board.columns)
        if column in row.cells
    }
    chosen: dict[tuple[int, int], list[int]] = {}
    for first, second in contents.tested:
        if first in places and second in places:
            (a, at), (b, _) = places[first], places[second]
            chosen.setdefault((min(a, b), max(a, b)), []).append(at)
    return {rows: sorted(columns) for rows, columns in sorted(chosen.items())}


def _shared(board: Leaderboard, a: int, b: int) -> list[int]:
    """Return the places of the columns that two rows have."""
    first, second = board.rows[a].cells, board.rows[b].cells
    return [place for place, column in enumerate(board.columns) if column in first and column in second]


class _Pictures:
    """Pictures of runs as data, up to a size of all together, and then as paths."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.there = store.pictures()
        self.left = PICTURES

    def of(self, record: RunRecord) -> str:
        """Return the address of a run's picture, '' without one."""
        if record.run_id not in self.there:
            return ""
        path = self.store.picture_of(record.run_id)
        if path.stat().st_size > self.left:
            return path.relative_to(self.store.folder).as_posix()
        data = path.read_bytes()
        self.left -= len(data)
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _record(record: RunRecord, costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Return what is shown of a run, under headings."""
    identity = record.identity
    cost = costs.get(record.costs.get("run", ""))
    return {
        "title": one_line(f"{record.model} ({record.weights})"),
        "task": one_line(record.task_title),
        "protocol": one_line(record.protocol_title),
        "error": record.error,
        "scores": {name: dict(score) for name, score in record.scores.items()},
        "train": dict(record.train),
        "sections": [
            ("Chosen on val", record.chosen),
            ("Hyper-parameters", identity["protocol"]),
            ("Images", {"data": identity["data"], **identity["task"]}),
            ("Counts", record.counts),
            ("Model", {name: identity[name] for name in MODEL if name in identity}),
            ("Preprocessing", identity["preprocessing"]),
            ("Cost at the size of the run", {name: getattr(cost, name) for name in COST} if cost else {}),
            ("Seconds", record.timings),
            ("Environment", record.provenance),
        ],
        "notes": list(record.notes),
    }


def _curves(folder: Path) -> dict[str, list[list[float]]]:
    """Return the losses of the trainings of a run: name -> steps and losses."""
    curves = {}
    for name, log in read_logs(folder).items():
        every = math.ceil(len(log["step"]) / CURVE)
        curves[name] = [log["step"][::every], log["loss"][::every]]
    return curves
