"""Which scores of a column are best, as far as paired tests on the same test images show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.report.compare import LEVEL, side_of
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard
from mixmim_bench.scoring.compare import Pair, Side
from mixmim_bench.scoring.statistics import holm
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore

VERSION = 3  # of the tests; raised when p-values or intervals may change
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


@dataclass(frozen=True)
class Difference:
    """A difference of two scores as a fraction, with its p-value and 95 % interval."""

    p: float
    value: float
    low: float
    high: float


class Pairs:
    """Paired tests of cells, kept in `pairs.json` of a results folder under the results that they compare."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.path = store.folder / "pairs.json"
        kept = read_json(self.path)
        pairs = kept.get("pairs") if kept.get("version") == VERSION else {}
        self.known: dict[str, list[float]] = {
            key: tested
            for key, tested in (pairs if isinstance(pairs, dict) else {}).items()
            if _is_tested(tested)
        }
        self.used: dict[str, list[float]] = {}
        self.tested: set[tuple[str, str]] = set()  # keys of cells
        self._sides: dict[str, Side] = {}

    def p_lower(self, a: Cell, b: Cell) -> float | None:
        """Return the p-value by which b is lower than a, 1 if it is not; None where they cannot be tested."""
        tested = self.difference(a, b)
        if tested is None:
            return None
        return tested.p if tested.value > 0 else 1.0

    def difference(self, a: Cell, b: Cell) -> "Difference | None":
        """Return a - b on what both have (images, seeds, draws); None where they cannot be tested."""
        swapped = a.key > b.key
        first, second = (b, a) if swapped else (a, b)
        key = digest([first.key, second.key], 24)
        if key not in self.used:
            tested = self.known.get(key) or self._test(first, second)
            if tested is None:
                return None
            self.used[key] = tested
        self.tested.add((first.key, second.key))
        p, value, low, high = self.used[key]
        return Difference(p, -value, -high, -low) if swapped else Difference(p, value, low, high)

    def _test(self, a: Cell, b: Cell) -> list[float] | None:
        try:
            pair = Pair(a.record.metric, self._side(a), self._side(b))
        except BenchError:  # predictions are missing, or of other images
            return None
        return [float(each) for each in (pair.p, pair.first - pair.second, pair.low, pair.high)]

    def _side(self, cell: Cell) -> Side:
        if cell.key not in self._sides:
            if len(self._sides) > SIDES:
                self._sides.clear()
            self._sides[cell.key] = side_of(self.store, cell)
        return self._sides[cell.key]

    def save(self) -> None:
        """Keep what was used, if it is not kept already."""
        if self.used != self.known:
            text = json.dumps({"version": VERSION, "pairs": self.used}, sort_keys=True, indent=0)
            write_whole(self.path, text.encode())


SIDES = 64  # predictions in memory


def _is_tested(values: Any) -> bool:
    """Whether values read from the file are a p-value, a difference and its interval."""
    return isinstance(values, list) and len(values) == 4 and all(isinstance(each, float) for each in values)


def marks_of(board: Leaderboard, pairs: Pairs) -> dict[Column, Marks]:
    """Mark each column with two rows or more.

    The highest score is compared with every other one, Holm-corrected, and then the next one with the rest.
    Rows with other settings are left out, and those in other precisions if there are some in float32.
    """
    marks = {}
    for column in board.columns:
        rows = [place for place, row in enumerate(board.rows) if column in row.cells and not row.settings]
        in_float32 = [place for place in rows if board.rows[place].precision == "float32"]
        rows = in_float32 or rows
        rows.sort(key=lambda place: -board.rows[place].cells[column].value)
        if len(rows) > 1:
            marks[column] = _mark(board, column, rows, pairs)
    return marks


def _mark(board: Leaderboard, column: Column, rows: Sequence[int], pairs: Pairs) -> Marks:
    ties, undecided = _not_lower(board, column, rows, pairs)
    if ties or undecided:
        return Marks(dict.fromkeys([rows[0], *ties], TIED) if ties else {}, undecided)
    marks = {rows[0]: BEST}
    if len(rows) > 2:
        ties, undecided = _not_lower(board, column, rows[1:], pairs)
        if not ties and not undecided:
            marks[rows[1]] = SECOND
    return Marks(marks, undecided)


def _not_lower(
    board: Leaderboard, column: Column, rows: Sequence[int], pairs: Pairs
) -> tuple[list[int], bool]:
    """Return the rows that are not shown to be lower than the first, and whether a pair is missing."""
    first, *others = [board.rows[place].cells[column] for place in rows]
    values = [pairs.p_lower(first, other) for other in others]
    tested = [(place, p) for place, p in zip(rows[1:], values, strict=True) if p is not None]
    corrected = holm([p for _, p in tested])
    ties = [place for (place, _), p in zip(tested, corrected, strict=True) if p >= LEVEL]
    return ties, None in values
