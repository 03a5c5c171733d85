"""Which scores of a column are best, as far as paired tests on the same test images show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.report.compare import LEVEL, side_of
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard
from mixmim_bench.scoring.compare import Pair, Side
from mixmim_bench.scoring.statistics import holm
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore

VERSION = 1  # of the tests; raised when p-values may change
BEST, SECOND, TIED = "best", "second", "tied"


@dataclass(frozen=True)
class Marks:
    """The marks of a column by row.

    Attributes:
        of_row: row -> BEST (better than every other one), SECOND (better than every other one but the best),
            or TIED (the highest score and those not shown to be lower, where there is no best).
        undecided: whether a comparison is missing, since predictions are.
    """

    of_row: Mapping[int, str] = field(default_factory=dict)
    undecided: bool = False


class Pairs:
    """p-values of pairs of cells, kept in `pairs.json` of a results folder under their run ids."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.path = store.folder / "pairs.json"
        kept = read_json(self.path)
        self.known: dict[str, float | None] = kept.get("p", {}) if kept.get("version") == VERSION else {}
        self.used: dict[str, float | None] = {}
        self._sides: dict[tuple[str, ...], Side] = {}

    def p(self, a: Cell, b: Cell) -> float | None:
        """Return the p-value of a pair, in any order; None where it cannot be tested."""
        key = digest(sorted([_ids(a), _ids(b)]), 24)
        if key not in self.used:
            self.used[key] = self.known[key] if key in self.known else self._test(a, b)
        return self.used[key]

    def _test(self, a: Cell, b: Cell) -> float | None:
        try:
            return float(Pair(a.record.metric, self._side(a), self._side(b)).p)
        except BenchError:  # predictions are missing, or of other images
            return None

    def _side(self, cell: Cell) -> Side:
        key = tuple(_ids(cell))
        if key not in self._sides:
            if len(self._sides) > SIDES:
                self._sides.clear()
            self._sides[key] = side_of(self.store, cell)
        return self._sides[key]

    def save(self) -> None:
        """Keep what was used, if it is not kept already."""
        if self.used != self.known:
            text = json.dumps({"version": VERSION, "p": self.used}, sort_keys=True, indent=0)
            write_whole(self.path, text.encode())


SIDES = 64  # predictions in memory


def _ids(cell: Cell) -> list[str]:
    return sorted(record.run_id for record in cell.records)


def marks_of(board: Leaderboard, pairs: Pairs) -> dict[Column, Marks]:
    """Mark each column with two rows or more; rows with other settings are left out.

    The highest score is compared with every other one, Holm-corrected, and then the next one with the rest.
    """
    marks = {}
    for column in board.columns:
        rows = [place for place, row in enumerate(board.rows) if column in row.cells and not row.settings]
        rows.sort(key=lambda place: -board.rows[place].cells[column].value)
        if len(rows) > 1:
            marks[column] = _mark(board, column, rows, pairs)
    return marks


def _mark(board: Leaderboard, column: Column, rows: Sequence[int], pairs: Pairs) -> Marks:
    ties, undecided = _not_lower(board, column, rows, pairs)
    if ties:
        return Marks(dict.fromkeys([rows[0], *ties], TIED), undecided)
    marks = {rows[0]: BEST}
    if len(rows) > 2:
        ties, undecided = _not_lower(board, column, rows[1:], pairs)
        if not ties:
            marks[rows[1]] = SECOND
    return Marks(marks, undecided)


def _not_lower(
    board: Leaderboard, column: Column, rows: Sequence[int], pairs: Pairs
) -> tuple[list[int], bool]:
    """Return the rows that are not shown to be lower than the first, and whether a pair is missing."""
    first, *others = [board.rows[place].cells[column] for place in rows]
    values = [pairs.p(first, other) for other in others]
    corrected = holm([1.0 if p is None else p for p in values])
    ties = [place for place, p in zip(rows[1:], corrected, strict=True) if p >= LEVEL]
    return ties, None in values
