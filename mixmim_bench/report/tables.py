"""Records to pandas tables: one row a result, and the leaderboard with one row a model.

Fractions stay fractions in the CSV; the Markdown shows percent. A missing score stays missing, and a
mean over an incomplete row is blank.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mixmim_bench.specs import Cost, RunRecord

COST = {"params_m": "Params (M)", "gmacs": "FLOPs (G)", "images_per_s": "Images/s"}
RANDOM_INIT = "random init"


@dataclass(frozen=True)
class Row:
    """What a row of the leaderboard stands for; `variant` tells rows of one model apart."""

    model: str
    weights: str
    variant: str = ""


@dataclass(frozen=True)
class Cell:
    """A score with its interval, both fractions; over several seeds mean ± one standard deviation."""

    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Leaderboard:
    """Cells by row and column (task, protocol), and how many older results were left out."""

    cells: Mapping[Row, Mapping[tuple[str, str], Cell]]
    columns: Sequence[tuple[str, str]]
    left_out: int


def leaderboard(records: Iterable[RunRecord]) -> Leaderboard:
    """Put each result into its cell; failed runs have none.

    A column holds one version of its task and protocol, the newest: older results are counted as left
    out. Results of one model that differ in more than the seed stand in rows of their own, which say
    what differs.
    """
    finished = [record for record in records if not record.error]
    newest: dict[tuple[str, str], tuple[int, int]] = {}
    for record in finished:
        newest[_column(record)] = max(_versions(record), newest.get(_column(record), (0, 0)))
    kept = [record for record in finished if _versions(record) == newest[_column(record)]]

    groups: dict[tuple[str, str, tuple[str, str]], list[RunRecord]] = {}
    for record in kept:
        key = (record.model["name"], record.model["weights"], _column(record))
        groups.setdefault(key, []).append(record)
    cells: dict[Row, dict[tuple[str, str], Cell]] = {}
    for (model, weights, column), group in groups.items():
        for variant, same in _variants(column, group).items():
            cells.setdefault(Row(model, weights, variant), {})[column] = _cell(same)
    ordered = dict(sorted(cells.items(), key=lambda item: (item[0].model, item[0].variant)))
    return Leaderboard(ordered, sorted(newest), len(finished) - len(kept))


def _column(record: RunRecord) -> tuple[str, str]:
    return record.task["name"], record.protocol["name"]


def _versions(record: RunRecord) -> tuple[int, int]:
    return record.task["version"], record.protocol["version"]


def _variants(column: tuple[str, str], group: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Part the results of one cell by their settings; a single setting needs no name."""
    settings = [_settings(record) for record in group]
    differing = [
        key
        for key in dict.fromkeys(key for setting in settings for key in setting)
        if len({str(setting.get(key)) for setting in settings}) > 1
    ]
    parted: dict[str, list[RunRecord]] = {}
    for record, setting in zip(group, settings, strict=True):
        named = ", ".join(f"{key}={setting.get(key)}" for key in differing)
        variant = f"{' '.join(column)}: {named}" if named else ""
        parted.setdefault(variant, []).append(record)
    return parted


def _settings(record: RunRecord) -> dict[str, Any]:
    """Return what decided a result besides model, task, protocol and seed."""
    return {
        "image_size": "x".join(map(str, record.image_size)),
        "precision": record.precision,
        "data": record.task["data_fingerprint"][:6],
        **record.protocol,
    }


def _cell(group: Sequence[RunRecord]) -> Cell:
    scores = [record.scores[record.task["metric"]] for record in group]
    if len(scores) == 1:
        return Cell(scores[0]["value"], scores[0]["low"], scores[0]["high"], 1)
    values = pd.Series([score["value"] for score in scores])
    mean, deviation = float(values.mean()), float(values.std())
    return Cell(mean, mean - deviation, mean + deviation, len(scores))


def to_frame(board: Leaderboard, costs: Mapping[str, Cost]) -> pd.DataFrame:
    """Make the wide table: one row a model, its cost at its own image size, three columns a score.

    costs: by model name. Columns of scores are `task protocol`, and the same with ` low` and ` high`.
    """
    rows = []
    for row, cells in board.cells.items():
        cost = costs.get(row.model)
        values: dict[str, Any] = {
            "model": row.model,
            "weights": row.weights,
            "variant": row.variant,
            **{name: getattr(cost, name, None) for name in COST},
            "uncounted": ", ".join(cost.uncounted) if cost else "",
        }
        for column in board.columns:
            cell = cells.get(column)
            name = " ".join(column)
            values[name] = cell.value if cell else None
            values[f"{name} low"] = cell.low if cell else None
            values[f"{name} high"] = cell.high if cell else None
        rows.append({**values, **_means(board, cells)})
    return pd.DataFrame(rows)


def _means(board: Leaderboard, cells: Mapping[tuple[str, str], Cell]) -> dict[str, float | None]:
    """Average each protocol over its tasks, where none is missing."""
    means: dict[str, float | None] = {}
    for protocol in sorted({protocol for _, protocol in board.columns}):
        of_protocol = [cells.get(column) for column in board.columns if column[1] == protocol]
        values = [cell.value for cell in of_protocol if cell is not None]
        complete = len(values) == len(of_protocol)
        means[f"mean {protocol}"] = sum(values) / len(values) if complete else None
    return means


def to_markdown(board: Leaderboard, costs: Mapping[str, Cost]) -> str:
    """Show the leaderboard as Markdown: percent, intervals beside the scores, notes below."""
    rows = []
    for row, cells in board.cells.items():
        cost = costs.get(row.model)
        weights = f"**{row.weights}**" if row.weights == RANDOM_INIT else row.weights
        shown = {
            "Model": row.model,
            "Weights": f"{weights} ({row.variant})" if row.variant else weights,
        }
        for name, title in COST.items():
            shown[title] = f"{getattr(cost, name):.1f}" if cost else ""
        if cost and cost.uncounted:
            shown[COST["gmacs"]] += " †"
        for column in board.columns:
            shown[" ".join(column)] = _show(cells.get(column))
        for name, mean in _means(board, cells).items():
            shown[name] = "" if mean is None else f"{100 * mean:.1f}"
        rows.append(shown)
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"{table}\n\n{_notes(board, costs)}"


def _show(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.seeds > 1:
        return f"{100 * cell.value:.1f} ± {100 * (cell.high - cell.value):.1f} ({cell.seeds} seeds)"
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f} to {100 * cell.high:.1f})"


def _notes(board: Leaderboard, costs: Mapping[str, Cost]) -> str:
    notes = [
        "Scores are percent with their 95 % interval. FLOPs are multiply-adds of one image at the "
        "model's own size, as in the papers; images/s is one forward pass on the machine that ran it."
    ]
    if any(row.weights == RANDOM_INIT for row in board.cells):
        notes.append("**random init**: the weights were never trained; only the head or fine-tuning was.")
    marked = [cost for cost in costs.values() if cost.uncounted]
    if marked:
        names = ", ".join(f"{cost.model} ({', '.join(cost.uncounted)})" for cost in marked)
        notes.append(f"† not everything that multiplies was counted: {names}.")
    if board.left_out:
        notes.append(f"{board.left_out} results of older task or protocol versions are left out.")
    return "\n\n".join(notes)
