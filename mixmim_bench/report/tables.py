"""Records to the leaderboard: one row a model and its weights, one column a task and protocol.

Fractions stay fractions in the CSV; the Markdown shows percent. A missing score stays missing, and a
mean over an incomplete row is blank.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mixmim_bench.specs import Cost, RunRecord, digest

COST = {
    "params_m": "Params (M)",
    "gmacs": "FLOPs (G)",
    "images_per_s": "Images/s",
    "peak_memory_mb": "Memory (MB)",
}
MORE_COST = ("activations_m", "peak_share")  # in the CSV only
Column = tuple[str, str]  # task, protocol


@dataclass(frozen=True)
class Cell:
    """A score with its interval, both fractions; over several seeds mean ± one standard deviation."""

    value: float
    low: float
    high: float
    records: tuple[RunRecord, ...]  # those it was made from, the newest first

    @property
    def seeds(self) -> int:
        """How many seeds the score is the mean of."""
        return len(self.records)

    @property
    def record(self) -> RunRecord:
        """The newest of the records."""
        return self.records[0]


@dataclass
class Row:
    """Results of a model with its weights in one precision; `settings` tells the rest apart."""

    model: str
    weights: str
    random_init: bool
    precision: str = "float32"
    settings: str = ""  # what differs from the settings that its columns are about
    cells: dict[Column, Cell] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Say what is not usual about the row."""
        precision = "" if self.precision == "float32" else self.precision
        return ", ".join(filter(None, [precision, self.settings]))

    def cost(self, costs: Mapping[str, Cost]) -> Cost | None:
        """Find what the model costs at its own image size, on the machine of the row's results."""
        keys = [cell.record.costs.get("own", "") for cell in self.cells.values()]
        return next((costs[key] for key in keys if key in costs), None)


@dataclass(frozen=True)
class Leaderboard:
    """Rows, the columns that any of them has, and how many results of older versions were left out."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    left_out: int

    def means(self, row: Row) -> dict[str, float | None]:
        """Average each protocol over its tasks, where none is missing."""
        means: dict[str, float | None] = {}
        for protocol in sorted({protocol for _, protocol in self.columns}):
            cells = [row.cells.get(column) for column in self.columns if column[1] == protocol]
            values = [cell.value for cell in cells if cell is not None]
            means[protocol] = sum(values) / len(values) if len(values) == len(cells) else None
        return means


def leaderboard(records: Iterable[RunRecord]) -> Leaderboard:
    """Put each result into its cell; failed runs have none.

    A column holds one version of its task and protocol, the newest, and is about the settings of its newest
    result: the images and the task for all models, the protocol for those with weights of one kind (random
    or trained), the rest for a model. Results with other settings get rows of their own, which say what
    differs. Runs that differ in nothing but the seed share a cell.
    """
    finished = [record for record in records if not record.error]
    newest: dict[Column, tuple[int, int]] = {}
    for record in finished:
        newest[_column(record)] = max(record.versions, newest.get(_column(record), (0, 0)))
    kept = [record for record in finished if record.versions == newest[_column(record)]]
    kept.sort(key=lambda record: record.provenance.get("started", ""), reverse=True)

    usual: dict[tuple[Any, ...], dict[str, str]] = {}
    groups: dict[str, list[RunRecord]] = {}
    for record in kept:
        for key, values in _settings(record).items():
            usual.setdefault(key, values)
        groups.setdefault(digest({**record.identity, "seed": None}), []).append(record)
    rows: dict[tuple[str, str, str, str], Row] = {}
    for group in groups.values():
        record, column = group[0], _column(group[0])
        precision = record.identity["precision"]
        settings = _difference(record, usual)
        blank = Row(record.model, record.weights, record.random_init, precision, settings)
        row = rows.setdefault((record.model, record.weights, precision, settings), blank)
        assert column not in row.cells, f"two results for one cell: {column} {row}"
        row.cells[column] = _cell(group)
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (*key[:2], key[2] != "float32", *key[2:]))]
    return Leaderboard(ordered, sorted(newest), len(finished) - len(kept))


def _column(record: RunRecord) -> Column:
    return record.task, record.protocol


def _settings(record: RunRecord) -> dict[tuple[Any, ...], dict[str, str]]:
    """Return the settings of a result as texts, each part under what it should be common to."""
    identity, column = record.identity, _column(record)
    model = {name: identity[name] for name in identity if name not in _COMMON}
    return {
        (column, "task"): _flat({"data": identity["data"], **identity["task"]}),
        (column, record.random_init, "protocol"): _flat(identity["protocol"]),
        (column, record.model, record.weights, identity["precision"]): _flat(model),
    }


_COMMON = ("data", "task", "protocol", "precision", "seed")


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: str(value)})
    return flat


def _difference(record: RunRecord, usual: Mapping[tuple[Any, ...], Mapping[str, str]]) -> str:
    """Name the settings of a result that are not those its column is about."""
    differing = []
    for key, ours in _settings(record).items():
        theirs = usual[key]
        differing += [
            f"{name}={ours.get(name, '(none)')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
    return f"{' '.join(_column(record))}: {', '.join(differing)}" if differing else ""


def _cell(group: Sequence[RunRecord]) -> Cell:
    scores = [record.scores[record.metric] for record in group]
    if len(scores) == 1:
        return Cell(scores[0]["value"], scores[0]["low"], scores[0]["high"], tuple(group))
    values = pd.Series([score["value"] for score in scores])
    mean, deviation = float(values.mean()), float(values.std())
    return Cell(mean, mean - deviation, mean + deviation, tuple(group))


def to_frame(board: Leaderboard, costs: Mapping[str, Cost]) -> pd.DataFrame:
    """Make the wide table; costs: by their key. `results/README.md` tells what each column means."""
    rows = []
    for row in board.rows:
        cost = row.cost(costs)
        values: dict[str, Any] = {
            "model": row.model,
            "weights": row.weights,
            "variant": row.variant,
            **{name: getattr(cost, name, None) for name in (*COST, *MORE_COST)},
            "uncounted": ", ".join(cost.uncounted) if cost else "",
            "device": cost.device if cost else "",
            "threads": cost.threads if cost else None,
        }
        for column in board.columns:
            cell = row.cells.get(column)
            name = " ".join(column)
            values[name] = cell.value if cell else None
            values[f"{name} low"] = cell.low if cell else None
            values[f"{name} high"] = cell.high if cell else None
            values[f"{name} seeds"] = cell.seeds if cell else None
        rows.append({**values, **{f"mean {name}": mean for name, mean in board.means(row).items()}})
    return pd.DataFrame(rows)


def to_markdown(board: Leaderboard, costs: Mapping[str, Cost]) -> str:
    """Show the leaderboard as Markdown: percent, intervals beside the scores, notes below."""
    rows = []
    for row in board.rows:
        cost = row.cost(costs)
        weights = f"**{row.weights}**" if row.random_init else row.weights
        shown = {
            "Model": row.model,
            "Weights": f"{weights} ({row.variant})" if row.variant else weights,
            **{title: _number(getattr(cost, name, None)) for name, title in COST.items()},
        }
        if cost and cost.uncounted:
            shown[COST["gmacs"]] += " †"
        shown.update({" ".join(column): _show(row.cells.get(column)) for column in board.columns})
        for name, mean in board.means(row).items():
            shown[f"mean {name}"] = "" if mean is None else f"{100 * mean:.1f}"
        rows.append(shown)
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"{table}\n\n{_notes(board, costs, table)}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _show(cell: Cell | None) -> str:
    if cell is None:
        return ""
    mark = " ‡" if _skipped(cell) else ""
    if cell.seeds > 1:
        return f"{100 * cell.value:.1f} ± {100 * (cell.high - cell.value):.1f} ({cell.seeds} seeds){mark}"
    score = cell.record.scores[cell.record.metric]
    if score.get("draws", 1) > 1:
        return f"{100 * cell.value:.1f} ± {100 * score['std']:.1f} ({score['draws']} draws){mark}"
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f} to {100 * cell.high:.1f}){mark}"


def _skipped(cell: Cell) -> int:
    """Count the test images that could not be read and were left out."""
    return cell.record.counts.get("skipped_test", 0)


def _notes(board: Leaderboard, costs: Mapping[str, Cost], table: str) -> str:
    found = [cost for cost in (row.cost(costs) for row in board.rows) if cost]
    machines = sorted({f"{cost.device}, {cost.threads} threads, {cost.precision}" for cost in found})
    notes = ["Scores are percent with their 95 % interval."]
    if " ± " in table:
        notes.append("± is one standard deviation over seeds or draws.")
    notes.append(
        "FLOPs are multiply-adds of one image at the model's own size, as in the papers; images/s and memory "
        f"are those of forward passes at that size ({'; '.join(machines) or 'not measured'})."
    )
    if any(row.random_init for row in board.rows):
        notes.append("**random init**: the weights were never trained; only the head or fine-tuning was.")
    marked = sorted({f"{cost.model} ({', '.join(cost.uncounted)})" for cost in found if cost.uncounted})
    if marked:
        notes.append(f"† not everything that multiplies was counted: {', '.join(marked)}.")
    skipped = [cell for row in board.rows for cell in row.cells.values() if _skipped(cell)]
    if skipped:
        about = {f"{_skipped(cell)} of {' '.join(_column(cell.record))}" for cell in skipped}
        notes.append(f"‡ test images that could not be read were left out: {', '.join(sorted(about))}.")
    if board.left_out:
        notes.append(f"{board.left_out} results of older task or protocol versions are left out.")
    return " ".join(notes)
