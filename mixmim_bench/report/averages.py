"""Averages over the tasks of a suite: the mean score, the mean above chance, and the mean rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mixmim_bench.report.leaderboard import Cell, Leaderboard, Mean, Row

EXPLAINED = (
    "the mean score, the mean above chance ((score - guess) / (1 - guess), where a guess knows only the "
    "class frequencies), and the mean rank among the complete rows"
)


@dataclass(frozen=True)
class Average:
    """What a row reaches over the tasks of a mean; None unless it has all of them.

    Attributes:
        tasks: how many of them it has.
        value: the mean score, a fraction.
        normalised: the mean of (score - guess) / (1 - guess); None too where guessing is always right.
        rank: the mean of its ranks among the complete rows, 1 for the best and ties shared; None too for
            rows with other settings.
    """

    tasks: int
    value: float | None
    normalised: float | None
    rank: float | None


def above_chance(cell: Cell) -> float | None:
    """Return (score - guess) / (1 - guess), averaged over seeds; None if guessing is always right.

    The guess of a metric without one is 0.
    """
    scores = [record.scores[record.metric] for record in cell.records]
    guesses = [score.get("guess", 0.0) for score in scores]
    if max(guesses) >= 1.0:
        return None
    shares = [(s["value"] - guess) / (1.0 - guess) for s, guess in zip(scores, guesses, strict=True)]
    return sum(shares) / len(shares)


def averages(board: Leaderboard, mean: Mean) -> list[Average]:
    """Return the averages of each row of a leaderboard over the tasks of a mean."""
    columns = [(task, mean.protocol) for task in mean.tasks]
    ranks = _ranks(board.rows, columns)
    found = []
    for place, row in enumerate(board.rows):
        cells = [row.cells[column] for column in columns if column in row.cells]
        value = row.mean(mean.tasks, mean.protocol)
        shares = [above_chance(cell) for cell in cells] if value is not None else []
        known = [share for share in shares if share is not None]
        normalised = sum(known) / len(known) if known and len(known) == len(columns) else None
        found.append(Average(len(cells), value, normalised, ranks.get(place)))
    return found


def _ranks(rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> dict[int, float]:
    """Return the mean ranks of the rows that have all columns, without rows of other settings."""
    complete = {
        place: [row.cells[column].value for column in columns]
        for place, row in enumerate(rows)
        if not row.settings and all(column in row.cells for column in columns)
    }
    table = pd.DataFrame.from_dict(complete, orient="index")
    return {int(place): float(rank) for place, rank in table.rank(ascending=False).mean(axis=1).items()}
