"""What a results folder holds, as a report shows it: read once for all tables, plots and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mixmim_bench.report.controls import Controlled, controls_of
from mixmim_bench.report.intervals import with_current_intervals
from mixmim_bench.report.leaderboard import Column, Leaderboard, leaderboard
from mixmim_bench.report.marks import Marks, Pairs, marks_of
from mixmim_bench.specs import Cost, RunRecord
from mixmim_bench.suite.records import RunStore


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The records of a results folder, and what follows from them.

    Attributes:
        store: the folder.
        records: finished and failed ones, without smoke runs.
        board: the leaderboard, without controls.
        controls: the probes that have controls.
        smoke: the leaderboard of smoke runs.
        costs: measurements by key.
        pairs: paired tests.
        broken: files that were set aside, with the reason.
    """

    store: RunStore
    records: Sequence[RunRecord]
    board: Leaderboard
    controls: Sequence[Controlled]
    smoke: Leaderboard
    costs: Mapping[str, Cost]
    pairs: Pairs
    broken: list[str]

    @cached_property
    def marks(self) -> dict[Column, Marks]:
        """What the paired tests show of each column."""
        return marks_of(self.board, self.pairs)

    @property
    def tested(self) -> set[tuple[str, str]]:
        """The keys of the cells that were compared for the marks."""
        return self.pairs.tested if self.marks else set()


def read_contents(store: RunStore, pairs: Pairs | None = None, save: bool = True) -> Contents:
    """Read a results folder, with intervals of the current methods.

    Args:
        store: the folder.
        pairs: tests of an earlier reading.
        save: whether records whose intervals changed are saved; else nothing is written.
    """
    broken: list[str] = []
    every = [with_current_intervals(store, record, save) for record in store.records(broken)]
    records = [record for record in every if not record.limited]
    board = leaderboard(each for each in records if not each.control)
    return Contents(
        store=store,
        records=records,
        board=board,
        controls=controls_of(board, records),
        smoke=leaderboard(each for each in every if each.limited and not each.control),
        costs=store.read_costs(broken),
        pairs=pairs or Pairs(store),
        broken=broken,
    )
