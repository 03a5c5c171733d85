"""What a suite tells of its runs: to whoever listens, and at its end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mixmim_bench.specs import Run, RunRecord

OnRecord = Callable[[RunRecord, bool], None]  # receives each record, and whether its run was done now


def ignore(record: RunRecord, new: bool) -> None:
    """Do nothing with a record."""
    del record, new


@dataclass
class Outcome:
    """The outcome of a suite."""

    failed: list[RunRecord] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)  # finished, but the records are missing
    interrupted: bool = False
