"""The leaderboard as CSV (fractions) and Markdown (percent). Missing scores stay missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mixmim_bench.errors import counted
from mixmim_bench.report.averages import EXPLAINED, averages
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard, Row
from mixmim_bench.report.marks import BEST, SECOND, TIED, Marks
from mixmim_bench.report.text import amount, markdown, markdown_table, one_line
from mixmim_bench.specs import Cost

COST = {
    "params_m": "Params (M)",
    "gmacs": "FLOPs (G, own size)",
    "images_per_s": "Images/s (own size)",
    "peak_memory_mb": "Memory (MB, own size)",
}
MISSING = "-"
MORE_COST = ("activations_m", "peak_share")  # in the CSV only


def to_frame(board: Leaderboard, costs: Mapping[str, Cost]) -> pd.DataFrame:
    """Build the wide table described in `results/README.md`; costs: measurements by key."""
    rows = []
    of_means = [(mean, averages(board, mean)) for mean in board.means]
    for place, row in enumerate(board.rows):
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
        for column, metric in board.other_metrics:
            other = board.other(row, column, metric)
            name = " ".join((*column, metric))
            values[name] = other.value if other else None
            values[f"{name} low"] = other.low if other else None
            values[f"{name} high"] = other.high if other else None
        for mean, of_rows in of_means:
            values[mean.name] = of_rows[place].value
            values[f"normalised {mean.over}"] = of_rows[place].normalised
            values[f"rank {mean.over}"] = of_rows[place].rank
        rows.append(values)
    return pd.DataFrame(rows)


def to_markdown(
    board: Leaderboard, costs: Mapping[str, Cost], marks: Mapping[Column, Marks] | None = None
) -> str:
    """Show the leaderboard as Markdown: percent, intervals beside the scores, notes below.

    marks: what paired tests show of the scores of each column.
    """
    rows = []
    others = []
    marks = marks or {}
    for place, row in enumerate(board.rows):
        cost = row.cost(costs)
        shown = {
            **_named(row),
            **{title: amount(getattr(cost, name, None)) for name, title in COST.items()},
        }
        if cost and cost.uncounted:
            shown[COST["gmacs"]] += " †"
        for column in board.columns:
            mark = marks[column].of_row.get(place, "") if column in marks else ""
            shown[_title(column)] = _marked(_show(row.cells.get(column)), mark)
        rows.append(shown)
        cells = {(*column, name): board.other(row, column, name) for column, name in board.other_metrics}
        if any(cells.values()):
            others.append(
                {**_named(row), **{_title(key): _show(cell, key[2]) for key, cell in cells.items()}}
            )
    table = markdown_table(rows)
    more = f"\n\nFurther metrics of the same runs:\n\n{markdown_table(others)}" if others else ""
    means = _averages(board)
    notes = _notes(board, costs, marks, table + more)
    return f"{table}\n\n{notes}{means and f'{_AVERAGES}{markdown_table(means)}'}{more}"


_AVERAGES = f"\n\nAverages over tasks: {EXPLAINED}:\n\n"


def _averages(board: Leaderboard) -> list[dict[str, str]]:
    """List the averages of each row that has some of their tasks, the best rank first."""
    shown = []
    for mean in board.means:
        found = zip(board.rows, averages(board, mean), strict=True)
        # what is incomplete last, and rows with other settings only where they are complete
        there = [
            (row, each) for row, each in found if each.tasks and not (row.settings and each.value is None)
        ]
        there.sort(key=lambda each: (each[1].value is None, each[1].rank is None, each[1].rank or 0.0))
        for row, each in there:
            incomplete = f"incomplete: {each.tasks} of {len(mean.tasks)}"
            shown.append(
                {
                    "Average over": f"{markdown(mean.over)}: {counted(len(mean.tasks), 'task')}",
                    **_named(row),
                    "Mean": incomplete if each.value is None else f"{100 * each.value:.1f}",
                    "Above chance": "" if each.normalised is None else f"{100 * each.normalised:.1f}",
                    "Rank": "" if each.rank is None else f"{each.rank:.2f}",
                }
            )
    return shown


def _named(row: Row) -> dict[str, str]:
    weights = markdown(row.weights)
    weights = f"**{weights}**" if row.random_init else weights
    about = f" ({markdown(row.variant)})" if row.variant else ""
    return {"Model": markdown(row.model), "Weights": f"{weights}{about}"}


def _title(names: Sequence[str]) -> str:
    return markdown(" ".join(names))


def _show(cell: Cell | None, metric: str = "") -> str:
    if cell is None:
        return MISSING
    metric = metric or cell.record.metric
    mark = (" ‡" if cell.skipped else "") + (" §" if cell.is_a_guess(metric) else "")
    if cell.seeds > 1:
        return f"{100 * cell.value:.1f} ± {100 * (cell.high - cell.value):.1f} ({cell.seeds} seeds){mark}"
    score = cell.record.scores[metric]
    if score.get("draws", 1) > 1:
        return f"{100 * cell.value:.1f} ± {100 * score['std']:.1f} ({score['draws']} draws){mark}"
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f} to {100 * cell.high:.1f}){mark}"


def _marked(text: str, mark: str) -> str:
    """Mark the score, which comes before its interval; `<u>` underlines in Markdown."""
    score, space, rest = text.partition(" ")
    return f"{_MARKED[mark].format(score)}{space}{rest}" if mark else text


_MARKED = {BEST: "**{}**", SECOND: "<u>{}</u>", TIED: "{}="}


def _notes(board: Leaderboard, costs: Mapping[str, Cost], marks: Mapping[Column, Marks], table: str) -> str:
    measured = [cost for cost in (row.cost(costs) for row in board.rows) if cost]
    machines = board.machines(costs)
    notes = ["Scores are percent with their 95 % interval."]
    if marks:
        notes.append(
            "**Bold**: better than every other model of the column; underlined: better than all but that; "
            "= marks the highest score and those that are not shown to be lower (paired tests on the same "
            "images, Holm-corrected, 5 %; with one seed they cover the choice of images only)."
        )
    undecided = sorted(_title(column) for column, each in marks.items() if each.undecided)
    if undecided:
        notes.append(f"Not decided, since predictions are missing: {', '.join(undecided)}.")
    if " ± " in table:
        notes.append("± is one standard deviation over seeds or draws.")
    notes.append(
        "FLOPs are multiply-adds of one image at the model's own size, as in the papers; images/s and memory "
        f"are those of forward passes at that size ({markdown('; '.join(machines)) or 'not measured'})."
    )
    if any(row.random_init for row in board.rows):
        notes.append("**random init**: the weights were never trained; only the head or fine-tuning was.")
    marked = sorted(
        {markdown(f"{cost.model} ({', '.join(cost.uncounted)})") for cost in measured if cost.uncounted}
    )
    if marked:
        notes.append(f"† some multiplying operations were not counted: {', '.join(marked)}.")
    if skipped := board.skipped():
        notes.append(f"‡ unreadable test images were skipped: {markdown(', '.join(skipped))}.")
    if " §" in table:
        notes.append(
            "§ not significantly better than always predicting the most frequent classes, or no object."
        )
    notes += [markdown(mean.note) for mean in board.means if mean.left_out]
    differing = [markdown(" ".join((*column, metric))) for column, metric in board.disagreements()]
    if differing:
        notes.append(f"Models are in another order by: {', '.join(differing)}.")
    if board.left_out:
        notes.append(
            f"{counted(board.left_out, 'result')} of older versions of task, metric, protocol or "
            f"architecture {'is' if board.left_out == 1 else 'are'} omitted."
        )
    return " ".join(map(one_line, notes))
