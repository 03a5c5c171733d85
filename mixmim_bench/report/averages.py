"""Averages over the tasks of a suite: the mean score, the mean above chance, and the mean rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mixmim_bench.report.leaderboard import Cell, Leaderboard, Mean, Row
from mixmim_bench.scoring.metrics import above_guess

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
    return _mean([above_guess(score["value"], score.get("guess", 0.0)) for score in scores])


def _mean(shares: Sequence[float | None]) -> float | None:
    """Average values; None if one is missing."""
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if len(known) == len(shares) else None


def averages(board: Leaderboard, mean: Mean) -> list[Average]:
    """Return the averages of each row of a leaderboard over the tasks of a mean."""
    columns = [(task, mean.protocol) for task in mean.tasks]
    ranks = _ranks(board.rows, columns)
    found = []
    for place, row in enumerate(board.rows):
        count = sum(column in row.cells for column in columns)
        cell = row.mean_cell(mean.tasks, mean.protocol)
        value = cell.value if cell else None
        normalised = _mean([above_chance(each) for each in cell.tasks]) if cell else None
        found.append(Average(count, value, normalised, ranks.get(place)))
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
